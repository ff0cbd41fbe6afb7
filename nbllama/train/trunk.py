"""A file that stores the output of the frozen blocks, so that later epochs can reuse it.

With `--lora-layers last:N`, nothing is trained below block L = n_layer - N. The input of block L at
a token therefore depends only on the base model and the tokens up to that token. The input is
bit-identical whether the sample is computed alone, in a batch, or as the beginning of a longer
sample (`tests/train/test_trunk.py`). The first pass over a sample stores these input vectors as a
float32 array `[n, C]`, and later passes start at block L.

The file begins with `_MAGIC`, the key and C, followed by one record per sample: a digest of its
tokens, the number of tokens, a checksum, and the vectors. New records are always appended. Reading
stops at a record that was truncated by a crash. If the checksum of a record does not match, its
vectors are computed again.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.shared import FEWEST_ROWS
from nbllama.errors import OutputError, shown
from nbllama.system.files import cannot_write
from nbllama.system.regular import open_own
from nbllama.system.run_lock import lock_or_refuse

_MAGIC = b"nbllama trunk 1\n"
_HEAD = struct.Struct("<16s64sI")  # magic, key, width
_RECORD = struct.Struct("<16sII")  # digest of the tokens, number of tokens, checksum of the vectors


class _Place(NamedTuple):
    """The offset of a sample's vectors in the file, their number, and their checksum."""

    offset: int
    n: int
    checksum: int


def trunk_bytes(n_tokens: int, n_samples: int, width: int) -> int:
    """Return the size of a file for `n_samples` samples with a total of `n_tokens` tokens."""
    return _HEAD.size + n_samples * _RECORD.size + 4 * width * n_tokens


class TrunkCache:
    """A file that stores the input of block `layer` for each sample, indexed by its tokens.

    Use it as a context manager, or call `close`. If the file cannot be read or written, `load` and
    `keep` report the error through `say` instead of raising, and training computes the vectors.
    """

    def __init__(
        self, path: str, key: str, *, layer: int, width: int, say: Callable[[str], None]
    ) -> None:
        """Open or create the file.

        Parameters
        ----------
        key : str
            Digest (64 hex digits) of everything that the vectors depend on, except the tokens.
        layer : int
            Number of frozen blocks at the bottom of the model.
        width : int
            Length of a vector, C.
        say : callable
            Function that is called with each line to print.

        Raises
        ------
        OutputError
            If the file cannot be opened or written, is used by another run, or was not written by
            nbllama.
        """
        self.path, self.layer, self.width, self.say = path, layer, width, say
        self.hits = 0
        self._places: dict[bytes, _Place] = {}
        self._head = _HEAD.pack(_MAGIC, key.encode(), width)
        self._full = False
        try:
            fd = open_own(path, os.O_RDWR)
        except OSError as e:
            raise cannot_write(path, e) from e
        self._file: BinaryIO = os.fdopen(fd, "r+b", buffering=0)
        try:
            lock_or_refuse(fd, path)
            self._end = self._open()
        except OSError as e:
            self._file.close()
            raise cannot_write(path, e) from e
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> int:
        """Read the record headers, and return the offset at which to append the next record."""
        size = self._file.seek(0, os.SEEK_END)
        head = self._read(0, min(size, _HEAD.size))
        if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
            raise OutputError(
                f"{shown(self.path, 400)}: nbllama did not write this file; move it, or choose a "
                "different --checkpoint-out"
            )
        if head != self._head:
            if size:
                self.say(f"{shown(self.path, 400)} is damaged; the blocks will be computed again")
            self._file.truncate(0)
            self._write(0, self._head)
            return len(self._head)
        end = len(self._head)
        for digest, place in self._records(end, size):
            self._places[digest] = place
            end = place.offset + 4 * self.width * place.n
        if end < size:
            self._file.truncate(end)
        return end

    def _records(self, offset: int, size: int) -> Iterator[tuple[bytes, _Place]]:
        while offset + _RECORD.size <= size:
            digest, n, checksum = _RECORD.unpack(self._read(offset, _RECORD.size))
            offset += _RECORD.size
            if n < 1 or offset + 4 * self.width * n > size:
                return
            yield digest, _Place(offset, n, checksum)
            offset += 4 * self.width * n

    @property
    def n_samples(self) -> int:
        """The number of samples in the file."""
        return len(self._places)

    def load(self, x: np.ndarray, batch: Batch) -> bool:
        """Fill x `[N, C]` with the input of block `layer`; return False if a sample is missing."""
        if batch.n_tokens < FEWEST_ROWS:  # small batches are rounded differently
            return False
        places = [self._places.get(digest) for digest in digests(batch)]
        found = [place for place in places if place is not None]
        if len(found) < len(places):
            return False
        whole, rows = batch.whole(), _rows(batch)
        for place, (first, last) in zip(found, pairwise(whole.seq_offsets.tolist()), strict=True):
            values = self._values(place, last - first)
            if values is None:
                return False
            x[rows[first:last]] = values
        self.hits += 1
        return True

    def keep(self, x: np.ndarray, batch: Batch) -> None:
        """Append the samples in `batch` that are not stored yet; x is `[N, C]`, as for `load`."""
        if self._full or batch.n_tokens < FEWEST_ROWS:
            return
        whole, rows = batch.whole(), _rows(batch)
        for digest, (first, last) in zip(
            digests(batch), pairwise(whole.seq_offsets.tolist()), strict=True
        ):
            if digest in self._places:
                continue
            values = np.ascontiguousarray(x[rows[first:last]], "<f4")
            raw = values.tobytes()
            place = _Place(self._end + _RECORD.size, last - first, zlib.crc32(raw))
            record = _RECORD.pack(digest, place.n, place.checksum)
            try:
                self._write(self._end, record + raw)
            except OSError as e:
                self._full = True
                with suppress(OSError):
                    self._file.truncate(self._end)
                reason = e.strerror or str(e)
                self.say(
                    f"{shown(self.path, 400)} cannot be written: {reason}; training continues "
                    "and recomputes the frozen blocks for the remaining samples in every epoch"
                )
                return
            self._places[digest] = place
            self._end = place.offset + len(raw)

    def _values(self, place: _Place, n: int) -> np.ndarray | None:
        """Read the vectors `[n, C]` of a sample; report damaged vectors and return None."""
        try:
            raw = self._read(place.offset, 4 * self.width * place.n)
            reason = "is damaged"
        except OSError as e:
            raw, reason = b"", f"cannot be read: {e.strerror or e}"
        if place.n == n and zlib.crc32(raw) == place.checksum and raw:
            return np.frombuffer(raw, "<f4").reshape(n, self.width)
        self._places = {d: p for d, p in self._places.items() if p != place}
        self.say(f"{shown(self.path, 400)} {reason}; recomputing the sample")
        return None

    def _read(self, offset: int, n: int) -> bytes:
        self._file.seek(offset)
        parts = []
        while n > 0 and (part := self._file.read(n)):
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def _write(self, offset: int, data: bytes) -> None:
        self._file.seek(offset)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Close the file without removing it."""
        self._file.close()

    def remove(self) -> None:
        """Close the file and delete it."""
        if sys.platform == "win32":
            self.close()
        with suppress(OSError):
            os.unlink(self.path)
        self.close()

    def __enter__(self) -> TrunkCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def digests(batch: Batch) -> list[bytes]:
    """Return a 16-byte digest of each sample's tokens."""
    whole = batch.whole()
    offsets = whole.seq_offsets.tolist()
    return [
        blake2b(whole.tokens[first:last].astype("<i4").tobytes(), digest_size=16).digest()
        for first, last in pairwise(offsets)
    ]


def _rows(batch: Batch) -> np.ndarray:
    """Return the index of the computed row for each token in the samples."""
    return np.arange(batch.n_tokens) if batch.tree is None else batch.tree.rows
