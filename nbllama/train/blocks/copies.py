"""A copy of the base model on a worker's machine, received in chunks and verified."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress

from nbllama.errors import NbllamaError

_HEX = re.compile("[0-9a-f]{64}")


class Copy:
    """The file SHA256.gguf in `folder`; it is given this name only when it is complete."""

    def __init__(self, folder: str, sha256: str, size: int) -> None:
        """Begin a copy. Raises `NbllamaError` if `folder` cannot store the file."""
        if not _HEX.fullmatch(sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        folder = os.path.expanduser(folder)
        self.path = os.path.join(folder, f"{sha256}.gguf")
        self._wanted, self._left = sha256, size
        self._sum = hashlib.sha256()
        try:
            os.makedirs(folder, exist_ok=True)
            fd, self._part = tempfile.mkstemp(prefix=f"{sha256[:16]}-", suffix=".part", dir=folder)
            self._file = os.fdopen(fd, "wb")
        except OSError as e:
            raise NbllamaError(f"the base model cannot be stored in {folder}: {e}") from e

    def append(self, piece: bytes) -> None:
        """Write the next chunk. Raises `NbllamaError` if writing fails."""
        self._left -= len(piece)
        self._sum.update(piece)
        try:
            if self._left < 0:
                raise OSError("received more bytes than the model contains")
            self._file.write(piece)
        except OSError as e:
            self._remove()
            raise NbllamaError(f"{self._part}: {e}") from e

    def finish(self) -> str:
        """Check the copy, rename it to its final name, and return its path.

        If the sha256 does not match, the copy is deleted and `NbllamaError` is raised.
        """
        if self._sum.hexdigest() != self._wanted:
            self._remove()
            raise NbllamaError("the copy of the base model is damaged: its sha256 does not match")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self.path)
        except OSError as e:
            self._remove()
            raise NbllamaError(f"{self.path}: {e}") from e
        return self.path

    def _remove(self) -> None:
        self._file.close()
        with suppress(OSError):
            os.unlink(self._part)
