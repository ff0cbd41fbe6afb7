"""Files that are never seen half written, and the lock that keeps two runs apart.

A file appears under its final name in one step: a temporary file in the same folder is written,
flushed to the disk, renamed over the name, and the folder is flushed. At any moment, also after
kill -9 or a power cut, the name holds the whole old file or the whole new one.

The temporary file is locked while its writer lives. So a leftover of a killed process can be told
from a file that is being written without trusting process ids, which containers reuse.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
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
_held: set[int] = set()  # descriptors of locks, closed in forked children


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Give a binary file to write; on success it replaces `path`, on any error nothing changes.

    The mode of a file that is replaced is kept; a symbolic link is replaced, not followed.
    Raises `OutputError` when the folder or the disk refuses (also a full disk or a short write).
    """
    name = os.fsdecode(os.fspath(path))
    folder, base = _split(name)
    temporary = os.path.join(folder, f".{base}.{secrets.token_hex(6)}{_SUFFIX}")
    try:
        _check_target(name)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o666)
    except OSError as e:
        raise _cannot_write(name, e) from e
    try:
        with os.fdopen(fd, "wb", _BUFFER_BYTES) as file:
            _try_lock(fd)
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
            raise  # not about this file: the caller failed to read something
        raise _cannot_write(name, e) from e
    except BaseException:
        _remove(temporary)
        raise


def sweep_temporary(path: Path) -> list[str]:
    """Remove what killed writers of `path` left in its folder; returns the removed names.

    A temporary file whose writer is alive is locked and stays.
    """
    folder, base = _split(os.fsdecode(os.fspath(path)))
    pattern = re.compile(rf"\.{re.escape(base)}\.[0-9a-f]{{12}}{re.escape(_SUFFIX)}")
    removed = []
    try:
        names = sorted(n for n in os.listdir(folder) if pattern.fullmatch(n))
    except OSError:
        return []  # no folder, nothing left in it
    for name in names:
        leftover = os.path.join(folder, name)
        with suppress(OSError):
            fd = os.open(leftover, os.O_RDWR)
            try:
                dead = _try_lock(fd)
            finally:
                os.close(fd)
            if dead:
                os.unlink(leftover)
                removed.append(name)
    return removed


def make_folder(path: Path) -> None:
    """Make the folder if it is not there; its parent must be. Raises `OutputError`."""
    name = os.fsdecode(os.fspath(path))
    if os.path.isdir(name):
        return
    folder, _ = _split(name.rstrip("/" + os.sep))
    try:
        os.mkdir(name)
    except OSError as e:
        raise _cannot_write(name, e) from e
    _sync_folder(folder)


def check_writable(path: Path) -> None:
    """Raise `OutputError` unless a file can be created in the folder of `path` and replace it."""
    name = os.fsdecode(os.fspath(path))
    folder, base = _split(name)
    probe = os.path.join(folder, f".{base}.{secrets.token_hex(6)}{_SUFFIX}")
    try:
        _check_target(name)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(probe)
    except OSError as e:
        raise _cannot_write(name, e) from e


class RunLock:
    """Exclusive right to write `path` and its numbered sisters, for as long as the process lives.

    The lock is the kernel's (`flock` on a file `.NAME.lock` beside `path`), so kill -9 releases
    it; the file left behind does not matter. Over NFS it holds between machines only where the
    server supports locks. Use as a context manager; a second holder gets `OutputError` naming the
    first one's process and host.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fsdecode(os.fspath(path))
        folder, base = _split(self.path)
        self.lock_path = os.path.join(folder, f".{base}.lock")
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock, which no other process may hold."""
        if self._fd >= 0:
            raise RuntimeError(f"{self.lock_path} is already held")
        while True:
            try:
                fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as e:
                raise _cannot_write(self.lock_path, e) from e
            try:
                if not _try_lock(fd, strict=True):
                    raise OutputError(
                        f"{shown(self.path, 400)}: another run is writing it"
                        f" ({_holder(fd)}); wait for it, or choose another output name"
                    )
                if not _same_file(fd, self.lock_path):  # the holder before us removed it
                    os.close(fd)
                    continue
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)
                os.write(fd, _identity().encode())
            except OSError as e:
                os.close(fd)
                raise _cannot_write(self.lock_path, e) from e
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
            _held.add(fd)
            return

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        _held.discard(fd)
        with suppress(OSError):
            os.unlink(self.lock_path)
        os.close(fd)

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _split(name: str) -> tuple[str, str]:
    """Folder and last part of a file name; `OutputError` when there is no last part."""
    folder, base = os.path.split(name)
    if not base or base in (".", "..") or "\0" in name:
        raise OutputError(f"{shown(name, 400)!r}: not the name of a file")
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


def _cannot_write(name: str, e: OSError) -> OutputError:
    return OutputError(f"{shown(name, 400)}: cannot be written: {e.strerror or e}")


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
    """Have the file's bytes on the disk, past the drive's own cache where that takes more."""
    if sys.platform == "darwin":
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def _sync_folder(folder: str) -> None:
    """Have the rename itself on the disk; file systems that cannot do that are left alone."""
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


def _try_lock(fd: int, strict: bool = False) -> bool:
    """Take the exclusive lock of an open file if it is free; `strict` tells other errors."""
    try:
        if sys.platform == "win32":
            os.lseek(fd, 1 << 30, os.SEEK_SET)  # far from the text, which must stay readable
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as e:
        if strict and e.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise
        return False


def _same_file(fd: int, name: str) -> bool:
    try:
        a, b = os.fstat(fd), os.stat(name)
    except OSError:
        return False
    return (a.st_ino, a.st_dev) == (b.st_ino, b.st_dev)


def _identity() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _holder(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    text = os.read(fd, 300).decode("utf-8", "replace").strip()
    return shown(text) or "process unknown"


def _close_in_child() -> None:
    # A forked child shares the lock; it must not keep it when the parent dies.
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
