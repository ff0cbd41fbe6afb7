"""Atomic writes: an incomplete file is never visible.

A file appears under its final name in one step: a temporary file in the same folder is written,
flushed to disk and renamed to the final name, and the folder is flushed. At any moment, even after
kill -9 or a power cut, the name refers to either the complete old file or the complete new file.

The temporary file is locked as long as its writer is alive. The lock distinguishes a file that is
being written from the leftover file of a killed process. Process ids would not be sufficient,
because containers reuse them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from nbllama.errors import OutputError, shown

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Path = str | os.PathLike[str]
_SUFFIX = ".nbllama-tmp"
_BUFFER_BYTES = 1 << 20
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it replaces `path` if the `with` block succeeds.

    On error, nothing changes. The mode of a replaced file is kept; a symbolic link is replaced, not
    followed. Raises `OutputError` if the file cannot be written, for example because the disk is
    full.
    """
    name = os.fsdecode(os.fspath(path))
    folder, base = split_name(name)
    temporary = os.path.join(folder, f".{base}.{secrets.token_hex(6)}{_SUFFIX}")
    try:
        _check_target(name)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o666)
    except OSError as e:
        raise cannot_write(name, e) from e
    try:
        with os.fdopen(fd, "wb", _BUFFER_BYTES) as file:
            try_lock(fd)
            _copy_mode(name, fd)
            yield file
            file.flush()
            _sync(fd)
            if sys.platform != "win32":
                os.replace(temporary, name)
        if sys.platform == "win32":
            os.replace(temporary, name)
        _sync_folder(folder)
    except OSError as e:
        _remove(temporary)
        if e.filename not in (None, temporary, name, folder):
            raise  # not about this file: the caller failed to read a different file
        raise cannot_write(name, e) from e
    except BaseException:
        _remove(temporary)
        raise


def sweep_temporary(path: Path) -> list[str]:
    """Remove temporary files of `path` whose writers were killed; return the names of the files.

    A temporary file whose writer is alive is locked, and is not removed.
    """
    folder, base = split_name(os.fsdecode(os.fspath(path)))
    pattern = re.compile(rf"\.{re.escape(base)}\.[0-9a-f]{{12}}{re.escape(_SUFFIX)}")
    removed = []
    try:
        names = sorted(n for n in os.listdir(folder) if pattern.fullmatch(n))
    except OSError:
        return []  # without the folder, there are no files
    for name in names:
        leftover = os.path.join(folder, name)
        with suppress(OSError):
            fd = os.open(leftover, os.O_RDWR)
            try:
                dead = try_lock(fd)
            finally:
                os.close(fd)
            if dead:
                os.unlink(leftover)
                removed.append(name)
    return removed


def make_folder(path: Path) -> None:
    """Create the folder if it does not exist; its parent must exist. Raises `OutputError`."""
    name = os.fsdecode(os.fspath(path))
    if os.path.isdir(name):
        return
    folder, _ = split_name(name.rstrip("/" + os.sep))
    try:
        os.mkdir(name)
    except OSError as e:
        raise cannot_write(name, e) from e
    _sync_folder(folder)


def check_writable(path: Path) -> None:
    """Raise `OutputError` unless `path` can be replaced with a new file in the same folder."""
    name = os.fsdecode(os.fspath(path))
    folder, base = split_name(name)
    probe = os.path.join(folder, f".{base}.{secrets.token_hex(6)}{_SUFFIX}")
    try:
        _check_target(name)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(probe)
    except OSError as e:
        raise cannot_write(name, e) from e


def split_name(name: str) -> tuple[str, str]:
    """Split a path into folder and file name. Raises `OutputError` if it does not name a file."""
    folder, base = os.path.split(name)
    if not base or base in (".", "..") or "\0" in name:
        raise OutputError(f"{shown(name, 400)!r}: not a file name")
    return folder or os.curdir, base


def _check_target(name: str) -> None:
    """Refuse to replace anything but a regular file or a symbolic link (never a device)."""
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise OSError(errno.EINVAL, "not a regular file", name)


def cannot_write(name: str, e: OSError) -> OutputError:
    """Return an error about a file that cannot be written."""
    folder, hint = os.path.dirname(name), ""
    if isinstance(e, FileNotFoundError) and folder and not os.path.exists(folder):
        hint = f"; the folder {shown(folder, 400)} does not exist"
    return OutputError(f"{shown(name, 400)}: cannot be written: {e.strerror or e}{hint}")


def _copy_mode(name: str, fd: int) -> None:
    if sys.platform != "win32":
        with suppress(OSError):
            mode = os.lstat(name).st_mode
            if stat.S_ISREG(mode):
                os.fchmod(fd, stat.S_IMODE(mode))


def _remove(name: str) -> None:
    with suppress(OSError):
        os.unlink(name)


def _sync(fd: int) -> None:
    """Flush the file to disk, including the drive's cache if that is a separate operation."""
    if sys.platform == "darwin":
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def _sync_folder(folder: str) -> None:
    """Flush the rename to disk, if the file system supports it."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(fd)


def try_lock(fd: int, *, strict: bool = False) -> bool:
    """Lock an open file exclusively; return False if that is not possible.

    With `strict`, returns False only if the file is already locked; other errors are raised.
    """
    try:
        if sys.platform == "win32":
            os.lseek(fd, 1 << 30, os.SEEK_SET)  # far beyond the text, which must stay readable
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as e:
        if strict and e.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise
        return False
