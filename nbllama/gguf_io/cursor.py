"""A cursor over the header bytes of a GGUF file; every read is checked against the end of the file.

Sizes are Python integers, so products and sums cannot overflow. Bounds are checked as
`size <= end - position`, which would not overflow with machine integers either.
"""

from __future__ import annotations

import struct
from array import array

import numpy as np

from nbllama.errors import GGUFError, shown
from nbllama.gguf_io import limits
from nbllama.gguf_io.strings import StringArray
from nbllama.gguf_io.types import SCALARS, ValueType

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PRINTABLE = bytes(range(0x20, 0x7F))


class Cursor:
    """A position in the bytes `buf[0:end]` of the file `path`; all errors are `GGUFError`."""

    def __init__(self, buf: memoryview, path: str) -> None:
        self.buf = buf
        self.end = len(buf)
        self.cap = self.end  # the metadata must not extend beyond this position
        self.pos = 0
        self.path = path
        self._text_left = limits.MAX_TEXT_BYTES
        self._strings_left = limits.MAX_ARRAY_STRINGS

    def error(self, what: str, problem: str) -> GGUFError:
        """Return a one-line error about the file, with path, field and problem."""
        return GGUFError(f"{shown(self.path, 400)}: {what}: {problem}")

    def take(self, size: int, what: str, part: str = "") -> int:
        """Skip `size` bytes and return the position of the first one.

        Raises `GGUFError` if fewer bytes remain in the file or in the space allowed for metadata.

        Error messages name the field as `what` followed by `part`. These are separate arguments so
        that strings are concatenated only if there is an error.
        """
        start = self.pos
        if size > self.end - start:
            raise self.error(
                what + part,
                f"needs bytes {start}..{start + size}, but the file has only {self.end} "
                "(truncated?)",
            )
        if size > self.cap - start:
            raise self.error(what + part, self._over_cap())
        self.pos = start + size
        return start

    def _over_cap(self) -> str:
        limit = limits.MAX_METADATA_BYTES
        return f"metadata continues after byte {self.cap}; the limit is {limit} bytes"

    def u32(self, what: str, part: str = "") -> int:
        """Read an unsigned 32-bit number."""
        value: int = _U32.unpack_from(self.buf, self.take(4, what, part))[0]
        return value

    def u64(self, what: str, part: str = "") -> int:
        """Read an unsigned 64-bit number."""
        value: int = _U64.unpack_from(self.buf, self.take(8, what, part))[0]
        return value

    def text(self, what: str, limit: int) -> str:
        """Read a length-prefixed UTF-8 string of at most `limit` bytes."""
        at = self.pos
        size = self.u64(what, " length")
        if size > limit:
            raise self.error(what, f"length {size} at byte {at}; the limit is {limit}")
        start = self.take(size, what)
        self._text_left -= size
        if self._text_left < 0:
            raise self.error(
                what, f"all keys and strings together exceed {limits.MAX_TEXT_BYTES} bytes"
            )
        try:
            return str(self.buf[start : self.pos], "utf-8")
        except UnicodeDecodeError as e:
            raise self.error(what, f"not UTF-8 at byte {start + e.start}") from None

    def name(self, what: str, limit: int) -> str:
        """Read a name: a string that is not empty and contains no control characters."""
        at = self.pos
        name = self.text(what, limit)
        if not name:
            raise self.error(what, f"empty at byte {at}")
        # isprintable() checks every character; for ASCII, a faster check is possible
        if name.encode().translate(None, _PRINTABLE) if name.isascii() else not name.isprintable():
            raise self.error(f"{what} '{shown(name)}'", f"control characters at byte {at}")
        return name

    def value(self, type_id: int, what: str) -> object:
        """Read a metadata value: int, float, bool, str, numpy array or `StringArray`."""
        if type_id == ValueType.STRING:
            return self.text(what, limits.MAX_STRING_BYTES)
        if type_id == ValueType.ARRAY:
            return self.array(what)
        return self.numbers(type_id, 1, what)[0].item()

    def numbers(self, type_id: int, count: int, what: str) -> np.ndarray:
        """Read `count` fixed-size values into a read-only array.

        The values are copied because they may be unaligned in the file, and because no view of the
        mapping may remain after an error.
        """
        dtype = SCALARS.get(type_id)
        if dtype is None:
            raise self.error(what, f"unknown value type {type_id} before byte {self.pos}")
        start = self.take(count * dtype.itemsize, what)
        raw = bytes(self.buf[start : self.pos])
        if type_id == ValueType.BOOL and (wrong := raw.translate(None, b"\0\1")):
            raise self.error(
                what, f"a boolean in bytes {start}..{self.pos} is {wrong[0]}; it must be 0 or 1"
            )
        return np.frombuffer(raw, dtype)

    def array(self, what: str) -> object:
        """Read an array: a numpy array or a `StringArray`."""
        at = self.pos
        type_id = self.u32(what, " element type")
        count = self.u64(what, " element count")
        if type_id == ValueType.ARRAY:
            raise self.error(what, f"array of arrays at byte {at}")
        if type_id == ValueType.STRING:
            return self.strings(count, what)
        return self.numbers(type_id, count, what)

    def strings(self, count: int, what: str) -> StringArray:
        """Read `count` length-prefixed strings, with their bytes unchanged."""
        buf, end, pos = self.buf, self.end, self.pos
        if count > (end - pos) // 8:
            raise self.error(
                what,
                f"{count} strings from byte {pos}, but the file has only {end} bytes (truncated?)",
            )
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.error(
                what, f"all string arrays together exceed {limits.MAX_ARRAY_STRINGS} strings"
            )
        ends, unpack = array("q"), _U64.unpack_from
        start, stop = pos, min(end, self.cap)
        for i in range(count):
            at = pos + 8
            size = unpack(buf, pos)[0] if at <= stop else 0
            if at > stop or size > stop - at:
                raise self._string_past_end(f"{what}[{i}]", pos)
            pos = at + size
            ends.append(pos - start)
        self.pos = pos
        return StringArray(bytes(buf[start:pos]), ends)

    def _string_past_end(self, what: str, pos: int) -> GGUFError:
        """Return an error about an element that extends beyond the file or the metadata limit."""
        size = 8 if self.end - pos < 8 else 8 + _U64.unpack_from(self.buf, pos)[0]
        if size > self.end - pos:
            return self.error(
                what,
                f"needs bytes {pos}..{pos + size}, but the file has only {self.end} (truncated?)",
            )
        return self.error(what, self._over_cap())
