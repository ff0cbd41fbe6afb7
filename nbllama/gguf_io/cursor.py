"""A bounded cursor over the header bytes of a GGUF file: every read is checked against the end.

Sizes are Python integers, so no product or sum can wrap; the test is always
`size <= end - position`, never `position + size <= end` in machine words.
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


class Cursor:
    """Position in the bytes `buf[0:end]` of the file called `path`; all errors are `GGUFError`."""

    def __init__(self, buf: memoryview, path: str) -> None:
        self.buf = buf
        self.end = len(buf)
        self.pos = 0
        self.path = path
        self._text_left = limits.MAX_TEXT_BYTES
        self._strings_left = limits.MAX_ARRAY_STRINGS

    def error(self, what: str, problem: str) -> GGUFError:
        """The one line that refuses the file: path, field, problem."""
        return GGUFError(f"{shown(self.path, 400)}: {what}: {problem}")

    def take(self, size: int, what: str) -> int:
        """Move over `size` bytes that must exist; returns where they start."""
        start = self.pos
        if size > self.end - start:
            raise self.error(
                what, f"needs bytes {start}..{start + size}, file has {self.end} (truncated?)"
            )
        self.pos = start + size
        return start

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.buf, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.buf, self.take(8, what))[0]

    def text(self, what: str, limit: int) -> str:
        """A length-prefixed UTF-8 string of at most `limit` bytes."""
        at = self.pos
        size = self.u64(f"{what} length")
        if size > limit:
            raise self.error(what, f"length {size} at byte {at}, limit {limit}")
        start = self.take(size, what)
        self._text_left -= size
        if self._text_left < 0:
            raise self.error(what, f"keys and strings over {limits.MAX_TEXT_BYTES} bytes in all")
        try:
            return str(self.buf[start : self.pos], "utf-8")
        except UnicodeDecodeError as e:
            raise self.error(what, f"not UTF-8 at byte {start + e.start}") from None

    def name(self, what: str, limit: int) -> str:
        """A string that names something: not empty, no control characters."""
        at = self.pos
        name = self.text(what, limit)
        if not name:
            raise self.error(what, f"empty at byte {at}")
        if not name.isprintable():
            raise self.error(f"{what} '{shown(name)}'", f"control characters at byte {at}")
        return name

    def value(self, type_id: int, what: str) -> object:
        """A metadata value: int, float, bool, str, numpy array or `StringArray`."""
        if type_id == ValueType.STRING:
            return self.text(what, limits.MAX_STRING_BYTES)
        if type_id == ValueType.ARRAY:
            return self.array(what)
        return self.numbers(type_id, 1, what)[0].item()

    def numbers(self, type_id: int, count: int, what: str) -> np.ndarray:
        """`count` fixed-size values, copied (their place in the file need not be aligned)."""
        dtype = SCALARS.get(type_id)
        if dtype is None:
            raise self.error(what, f"unknown value type {type_id} before byte {self.pos}")
        start = self.take(count * dtype.itemsize, what)
        raw = np.frombuffer(self.buf, np.uint8, count * dtype.itemsize, start)
        if type_id == ValueType.BOOL and count and int(raw.max()) > 1:
            raise self.error(what, f"boolean byte {int(raw.max())} at byte {start}, must be 0 or 1")
        return raw.copy().view(dtype)

    def array(self, what: str) -> object:
        at = self.pos
        type_id = self.u32(f"{what} element type")
        count = self.u64(f"{what} element count")
        if type_id == ValueType.ARRAY:
            raise self.error(what, f"array of arrays at byte {at}")
        if type_id == ValueType.STRING:
            return self.strings(count, what)
        dtype = SCALARS.get(type_id)
        size = count * dtype.itemsize if dtype is not None else 0
        if size > limits.MAX_METADATA_BYTES and size <= self.end - self.pos:
            raise self.error(what, f"{size} bytes, limit {limits.MAX_METADATA_BYTES}")
        return self.numbers(type_id, count, what)

    def strings(self, count: int, what: str) -> StringArray:
        """`count` length-prefixed strings, bytes kept as they are."""
        buf, end, pos = self.buf, self.end, self.pos
        if count > (end - pos) // 8:
            raise self.error(what, f"{count} strings from byte {pos}, file has {end} (truncated?)")
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.error(what, f"over {limits.MAX_ARRAY_STRINGS} array strings in all")
        ends, unpack = array("q"), _U64.unpack_from
        start, stop = pos, min(end, pos + limits.MAX_METADATA_BYTES)
        for i in range(count):
            at = pos + 8
            size = unpack(buf, pos)[0] if at <= stop else 0
            if at > stop or size > stop - at:
                raise self._string_past_end(f"{what}[{i}]", pos, start)
            pos = at + size
            ends.append(pos - start)
        self.pos = pos
        return StringArray(bytes(buf[start:pos]), ends)

    def _string_past_end(self, what: str, pos: int, start: int) -> GGUFError:
        """Element `what` at `pos` leaves the file, or the array grows over the limit."""
        size = 8 if self.end - pos < 8 else 8 + _U64.unpack_from(self.buf, pos)[0]
        if size > self.end - pos:
            return self.error(
                what, f"needs bytes {pos}..{pos + size}, file has {self.end} (truncated?)"
            )
        return self.error(
            what, f"array over {limits.MAX_METADATA_BYTES} bytes from byte {start} on"
        )
