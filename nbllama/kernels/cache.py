"""Compiled kernels on disk: one file per kernel and signature.

Numba's own cache keeps an index per function, which can be corrupted if two processes compile at
the same time, and it raises an error when it reads a damaged file. In this cache, a file's name
contains a hash of everything that affects the machine code and is not already covered by the folder
name (`key`), and the file begins with a hash of the remaining bytes. A file that is truncated,
modified, written by a different package or stored under a different key is treated as a cache miss:
the kernel is compiled, and the file is replaced.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import secrets
import stat
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.errors import NumbaWarning
from numba.core.serialize import dumps

from nbllama.kernels.folder import KernelFolder, not_trusted

_log = logging.getLogger("nbllama")
_MAGIC = b"nbllama kernel 1\n"
_DIGEST = 32  # bytes


@cache
def _note(why: str) -> None:
    """Log a message once; it goes to standard error unless the program configures logging."""
    _log.warning(
        "note: kernels are compiled again at each start, which takes minutes: %s"
        " (set NBLLAMA_CACHE_DIR to use a different folder)",
        why,
    )


@cache
def _source_hash(path: str) -> str:
    """Return the hash of the source file at `path`, or "" if the file cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


class KernelCache(_Cache):
    """A per-function cache that implements the interface expected by Numba's dispatchers."""

    def __init__(self, function: Callable[..., Any], folder: Callable[[], KernelFolder]) -> None:
        """Create the cache; `folder` is called when the first kernel is loaded or compiled.

        Functions defined at an interactive prompt are not cached.
        """
        self._function, self._folder = function, folder
        self._source = _source_hash(function.__code__.co_filename)
        self._enabled = bool(self._source)

    @property
    def cache_path(self) -> str:
        """The folder in which kernels are stored, or "" if there is none."""
        return str(self._folder().path or "")

    def enable(self) -> None:
        """Turn on the cache if the function has a source file."""
        self._enabled = bool(self._source)

    def disable(self) -> None:
        """Stop loading and saving kernels."""
        self._enabled = False

    def flush(self) -> None:
        """Do nothing, because a recompiled kernel replaces its file."""

    def key(self, sig: Any, codegen: Any) -> str:
        """Return everything that affects the machine code, except what the folder name covers."""
        code, cells = self._function.__code__, self._function.__closure__ or ()
        closure = dumps(tuple(cell.cell_contents for cell in cells)) if cells else b""
        hashes = [hashlib.sha256(b).hexdigest() for b in (code.co_code, closure)]
        name = f"{self._function.__module__}.{self._function.__qualname__}:{code.co_firstlineno}"
        return "\n".join([name, self._source, *hashes, str(sig), *map(str, codegen.magic_tuple())])

    def _path(self, folder: Path, key: str) -> Path:
        name = self._function.__qualname__.replace("<", "").replace(">", "")[-60:]
        return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel for a signature, or None if it must be compiled."""
        target_context.refresh()
        folder = self._folder()
        if not self._enabled or folder.path is None:
            return None
        key = self.key(sig, target_context.codegen())
        return _load(self._path(folder.path, key), target_context, key)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel to its file. If writing fails, log a message."""
        folder = self._folder()
        if not self._enabled:
            return
        if folder.path is None:
            _note(folder.why)
            return
        if data.library.has_dynamic_globals or data.lifted:
            warnings.warn(f"{self._function.__qualname__} cannot be cached", NumbaWarning, 2)
            return
        key = self.key(sig, data.codegen)
        path = self._path(folder.path, key)
        payload = dumps((key, data._reduce()))
        new = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with open(fd, "wb") as f:
                f.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(new, path)
        except OSError as e:
            with suppress(OSError):
                new.unlink()
            _note(f"{folder.path} cannot be written: {e.strerror}")


def _load(path: Path, target_context: Any, key: str) -> Any:
    """Load a kernel from a file; return None if the file is missing or invalid."""
    payload = _read(path)
    if payload is None:
        return None
    try:
        found, data = pickle.loads(payload)
        return CompileResult._rebuild(target_context, *data) if found == key else None
    except Exception as e:  # unpickling a bad file can raise any exception
        _log.warning("note: %s is compiled again: %s: %s", path.name, type(e).__name__, e)
        return None


def _read(path: Path) -> bytes | None:
    """Return the pickle stored in a file, or None if the file is incomplete or not trusted."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    with open(fd, "rb") as f:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not_trusted(found):
            return None
        try:
            text = f.read()
        except OSError:
            return None
    start = len(_MAGIC) + _DIGEST
    payload = text[start:]
    whole = text[:start] == _MAGIC + hashlib.sha256(payload).digest()
    return payload if whole else None
