"""The folder in which processes share the machine code of one set of kernels.

The files are pickles, and loading a pickle can run arbitrary code. Therefore, a folder is used only
if it is not a link, is owned by this user or root, and is not writable by anyone else. Every file
must pass the same checks. If the folder is read-only, kernels are loaded from it but not saved.
Each process holds a lock on the folder that it uses. When a new folder is created, old unlocked
folders are removed.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":
    import fcntl

KEPT = 8  # number of most recently used folders to keep
LATELY = 7 * 86400.0  # seconds; folders used within this time are also kept
_HALF_WRITTEN = 3600.0  # seconds after which a temporary file is considered abandoned
_IN_USE = "in-use"  # the locked file; its modification time is when the folder was last used
_PREFIX = "kernels-"


class KernelFolder(NamedTuple):
    """The folder to use. If no folder can be used, `path` is None and `why` gives the reason."""

    path: Path | None
    why: str


def cache_root() -> Path:
    """Return `NBLLAMA_CACHE_DIR` or `NUMBA_CACHE_DIR` if set, else the user's cache folder."""
    for name in ("NBLLAMA_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if base := os.environ.get(name):
            return Path(base)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "nbllama"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base) / "nbllama" if base else Path.home() / ".cache" / "nbllama"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nbllama-{os.getuid()}"


def not_trusted(found: os.stat_result) -> str:
    """Return why the file or folder with this `lstat` result is not trusted, or "" if it is."""
    if stat.S_ISLNK(found.st_mode):
        return "it is a link"
    if sys.platform == "win32":
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return "it belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users can write to it"
    return ""


@cache
def kernel_folder(kernels: str) -> KernelFolder:
    """Return the folder for the kernels with this hash; create it if necessary."""
    root = cache_root()
    path = root / f"{_PREFIX}{kernels}"
    _sweep_temporary()
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            new = not os.path.lexists(path)
            # Others may read it, because one user can build a container image that another runs.
            with suppress(FileExistsError):
                path.mkdir(mode=0o755)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) and not stat.S_ISLNK(found.st_mode):
                return KernelFolder(None, f"{path} is not a folder")
            if why := not_trusted(found):
                return KernelFolder(None, f"{path} is not used, because {why}")
            if _hold(path):
                break
    except OSError as e:
        return KernelFolder(None, f"{e.filename or path}: {e.strerror}")
    if new:
        _prune(root, path)
    _sweep_half_written(path)
    return KernelFolder(path, "")


def _lock(fd: int, how: int) -> bool:
    """Try to lock a file; return False if another process holds a conflicting lock.

    On a file system without locks, shared locks always succeed and exclusive locks always fail.
    """
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        return not how & fcntl.LOCK_EX  # a folder that cannot be locked must not be removed
    return True


def _hold(path: Path) -> bool:
    """Lock a folder until the process ends; return False if the folder has been removed."""
    if sys.platform == "win32":
        return True
    place, fd = path / _IN_USE, -1
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            fd = os.open(place, flags | os.O_NOFOLLOW, 0o644)
            break
    if fd < 0:
        return path.is_dir()  # a folder that is not writable cannot be removed either
    _lock(fd, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(place.lstat(), os.fstat(fd)):
            with suppress(OSError):
                os.utime(fd)
            return True
    os.close(fd)
    return False


def _last_used(folder: Path) -> float:
    """Return when a folder was last used, in seconds since the epoch.

    If the lock file is missing, this is when the folder was last modified.
    """
    times = [folder.lstat().st_mtime]
    with suppress(OSError):
        times.append((folder / _IN_USE).lstat().st_mtime)
    return max(times)


def _prune(root: Path, own: Path) -> None:
    """Remove unlocked folders that have not been used for `LATELY` seconds.

    The `KEPT` most recently used folders are not removed.
    """
    if sys.platform == "win32":
        return
    found = []
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder != own and not not_trusted(folder.lstat()) and folder.is_dir():
                found.append((_last_used(folder), folder))
    found.sort(reverse=True)
    for used, folder in found[KEPT - 1 :]:
        if time.time() - used > LATELY:
            with suppress(OSError):
                _remove(folder)


def _remove(folder: Path) -> None:
    fd = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        if _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
            gone = folder.with_name(f".removed-{os.getpid()}-{folder.name}")
            folder.rename(gone)  # atomic; a process that needs the folder creates a new one
            shutil.rmtree(gone, ignore_errors=True)
    finally:
        os.close(fd)


def _sweep_half_written(folder: Path) -> None:
    """Remove temporary files left by processes that were killed while writing a kernel."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - file.lstat().st_mtime > _HALF_WRITTEN:
                file.unlink()


def _sweep_temporary() -> None:
    """Remove the folders that versions up to 0.1 left in the system's temporary folder."""
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob("nbllama-kernels-*"):
        with suppress(OSError):
            found = folder.lstat()
            old = time.time() - found.st_mtime > LATELY
            if old and stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
