"""Read a file sequentially, checking that no read goes past its end."""

from __future__ import annotations

import math
import os
import stat

import numpy as np

from nbllama.adapter.stored import MissingAdapter, refuse
from nbllama.errors import CheckpointError
from nbllama.opt.arrays import check_finite

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
Path = str | os.PathLike[str]


class Source:
    """A file opened for reading, as a context manager.

    Pipes and devices are refused, because they have no end. Raises `MissingAdapter` if the file
    does not exist, and `CheckpointError` for any other problem.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
        except FileNotFoundError as e:
            raise MissingAdapter(os.fspath(path)) from e
        except OSError as e:
            raise self.error("file", f"cannot be read: {e.strerror}") from e
        self._file = os.fdopen(self._fd, "rb")
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            self._file.close()
            raise self.error("file", "not a regular file")
        self.size = info.st_size
        self.at = 0

    @property
    def left(self) -> int:
        """The number of bytes from the current position to the end."""
        return self.size - self.at

    def error(self, where: str, what: str) -> CheckpointError:
        """Return a one-line error about this file."""
        return refuse(self.path, where, what)

    def take(self, n: int, what: str) -> bytes:
        """Read the next `n` bytes; error messages call them `what`."""
        if n > self.left:
            raise self.error(
                what, f"needs {n} bytes at offset {self.at}, but the file ends at {self.size}"
            )
        data = self._file.read(n)
        if len(data) != n:
            raise self.error(what, "the file was truncated while being read")
        self.at += n
        return data

    def floats(self, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
        """Read the next array as a finite float32 copy; `dtype` is a key of `BYTES`."""
        raw = self.take(math.prod(shape) * BYTES[dtype], what)
        if dtype == "BF16":
            x = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)
        if check_finite({what: x}):
            raise self.error(what, "contains a NaN or an infinity")
        return x.reshape(shape)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


_BINARY = getattr(os, "O_BINARY", 0)
