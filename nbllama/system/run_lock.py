"""A lock that prevents two runs from writing the same files."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from nbllama.errors import OutputError, shown
from nbllama.system.files import Path, cannot_write, split_name, try_lock
from nbllama.system.regular import open_own

_held: set[int] = set()  # lock descriptors, which forked children close


class RunLock:
    """A lock for writing `path`; it is released when the process ends, if not earlier.

    The lock is a kernel lock (`flock` on a file `.NAME.lock` next to `path`), so kill -9 releases
    it, and the file that remains is harmless. Over NFS, the lock works between machines only if the
    server supports locks. Use the lock as a context manager. If it is already held, `OutputError`
    is raised with the process and host of the holder. A lock file that is a link, is not a regular
    file, or belongs to a different user is refused, and nothing is written to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fsdecode(os.fspath(path))
        folder, base = split_name(self.path)
        self.lock_path = os.path.join(folder, f".{base}.lock")
        self._fd = -1

    def acquire(self) -> None:
        """Acquire the lock. Raises `OutputError` if another process holds it."""
        if self._fd >= 0:
            raise RuntimeError(f"{self.lock_path} is already held")
        while True:
            try:
                fd = open_own(self.lock_path, os.O_RDWR)
            except OSError as e:
                raise cannot_write(self.lock_path, e) from e
            try:
                _check_ours(fd, self.lock_path)
                lock_or_refuse(fd, self.path)
                if not _same_file(fd, self.lock_path):  # the previous holder removed the file
                    os.close(fd)
                    continue
                os.lseek(fd, 0, os.SEEK_SET)
                os.ftruncate(fd, 0)
                os.write(fd, _identity().encode())
            except OSError as e:
                os.close(fd)
                raise cannot_write(self.lock_path, e) from e
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd
            _held.add(fd)
            return

    def release(self) -> None:
        """Release the lock if it is held."""
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


def lock_or_refuse(fd: int, name: str) -> None:
    """Lock an open file; raise `OutputError` about `name` if the file is already locked."""
    if not try_lock(fd, strict=True):
        raise OutputError(
            f"{shown(name, 400)}: another run is writing to it ({_holder(fd)}); wait until that "
            "run ends, or choose a different output name"
        )


def _check_ours(fd: int, name: str) -> None:
    """Refuse a file that has another name (a hard link) or belongs to a different user."""
    found = os.fstat(fd)
    if found.st_nlink > 1:
        raise OutputError(
            f"{shown(name, 400)}: the lock file has a second name (a hard link); remove the file"
        )
    if hasattr(os, "getuid") and os.getuid() not in (0, found.st_uid):
        raise OutputError(f"{shown(name, 400)}: the lock file belongs to another user; remove it")


def _same_file(fd: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(name))
    except OSError:
        return False


def _identity() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _holder(fd: int) -> str:
    try:
        text = os.pread(fd, 300, 0) if hasattr(os, "pread") else b""
    except OSError:
        text = b""
    line = text.decode("utf-8", "replace").strip()
    return shown(line) if line.startswith("process ") else "process unknown"


def _close_in_child() -> None:
    # A forked child shares the lock and must not keep it after the parent dies.
    for fd in _held:
        with suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
