"""An array of strings in the byte format of a GGUF file; each string is decoded on access."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class StringArray(Sequence[str]):
    """A read-only sequence of `str`; bytes that are not valid UTF-8 become lone surrogates.

    For an element s, `s.encode("utf-8", "surrogateescape")` returns the original bytes; `raw(i)`
    returns them directly. `wire` contains the elements as stored in the file (each after its
    u64 length), and `ends[i]` is the position in `wire` at which element i ends.
    """

    __slots__ = ("ends", "wire")

    def __init__(self, wire: bytes, ends: array[int]) -> None:
        self.wire = wire
        self.ends = ends

    @classmethod
    def of(cls, items: Iterable[str | bytes]) -> StringArray:
        """Create an array from Python strings or bytes."""
        wire, ends = bytearray(), array("q")
        for item in items:
            raw = item if isinstance(item, bytes) else item.encode("utf-8", "surrogateescape")
            wire += len(raw).to_bytes(8, "little") + raw
            ends.append(len(wire))
        return cls(bytes(wire), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def raw(self, i: int) -> bytes:
        """Return the bytes of element `i` (a negative index counts from the end)."""
        n = len(self.ends)
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for an array of {n} strings")
        i %= n
        return self.wire[(self.ends[i - 1] if i else 0) + 8 : self.ends[i]]

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the bytes of each element in order."""
        start = 8
        for end in self.ends:
            yield self.wire[start:end]
            start = end + 8

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.raw(i).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (part.decode("utf-8", "surrogateescape") for part in self.iter_raw())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return self.wire == other.wire and self.ends == other.ends
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringArray({len(self)} strings, {len(self.wire)} bytes)"
