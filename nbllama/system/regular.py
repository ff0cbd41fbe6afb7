"""Open files safely; only regular files and, for reading, pipes are accepted."""

from __future__ import annotations

import errno
import os
import select
import stat

_PIPE_SECONDS = 10.0  # seconds without a byte after which reading a pipe fails
_CHUNK = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
)


def kind_of(mode: int) -> str:
    """Describe the kind of a file that is not regular, for an error message."""
    return next((word for test, word in _KINDS if test(mode)), "a special file")


def open_own(name: str, flags: int) -> int:
    """Open a regular file for writing, creating it if it does not exist; return the descriptor.

    `flags` is `os.O_RDWR` or `os.O_WRONLY`, with or without `os.O_APPEND`. Links are not followed,
    and FIFOs and devices are not opened. Raises `OSError` with a reason.
    """
    before = _mode(name)
    if before is not None and not stat.S_ISREG(before):
        raise OSError(errno.EINVAL, f"{kind_of(before)}, not a regular file", name)
    more = [getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC")]
    fd = os.open(name, flags | os.O_CREAT | sum(more), 0o666)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):  # the file was replaced in the meantime
        os.close(fd)
        raise OSError(errno.EINVAL, f"{kind_of(mode)}, not a regular file", name)
    return fd


def _mode(name: str) -> int | None:
    try:
        return os.lstat(name).st_mode
    except FileNotFoundError:
        return None


def read_whole(path: str | os.PathLike[str], at_most: int) -> bytes:
    """Read all bytes of a regular file or a pipe.

    Raises `OSError` if the file cannot be read, and `ValueError` with a reason if it is a folder or
    a device, contains more than `at_most` bytes, or is a pipe that delivers no data for 10 seconds.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ValueError(f"{kind_of(mode)}, not a regular file")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(path, flags)
    try:
        return _all_of(fd, stat.S_ISFIFO(mode), at_most)
    finally:
        os.close(fd)


def _all_of(fd: int, pipe: bool, at_most: int) -> bytes:
    if not pipe and (size := os.fstat(fd).st_size) > at_most:
        raise ValueError(f"{size} bytes, but the limit is {at_most}")
    parts: list[bytes] = []
    total = 0
    while True:
        if pipe and not select.select([fd], [], [], _PIPE_SECONDS)[0]:
            raise ValueError(f"a pipe that sent nothing for {_PIPE_SECONDS:.0f} s")
        part = os.read(fd, _CHUNK)
        if not part:
            return b"".join(parts)
        total += len(part)
        if total > at_most:
            raise ValueError(f"larger than the limit of {at_most} bytes")
        parts.append(part)


def first_bytes(path: str | os.PathLike[str], n: int) -> bytes:
    """Read the first `n` bytes of a regular file, or fewer if the file is shorter.

    Raises `OSError` if the file cannot be read or is not a regular file.
    """
    if not stat.S_ISREG(mode := os.stat(path).st_mode):
        raise OSError(errno.EINVAL, f"{kind_of(mode)}, not a regular file", os.fspath(path))
    with open(path, "rb") as file:
        return file.read(n)
