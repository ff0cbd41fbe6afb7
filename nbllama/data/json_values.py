"""Read JSON from record files: one value per line, a multi-line value, or a sequence of values.

Commas after values and trailing commas in lists and objects are ignored. A duplicate key in an
object is an error, because one of the values would be lost. NaN, which pandas writes for a missing
value, is read as null. Numbers keep their original spelling.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from nbllama.data.spelled import spelled, spelled_integer
from nbllama.errors import DataError, shown

_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_BETWEEN = re.compile(r"[ \t\r\n\ufeff]*(?:,[ \t\r\n\ufeff]*)?")
_BRACKETS = re.compile(r"[\[\]{}\s]{1,8},?")
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=[ \t\r\n]*[}\]])', re.S)
# Punctuation that input methods for Chinese insert instead of the ASCII characters of JSON
_WIDE = {"\uff1a": ":", "\uff0c": ",", "\u201c": '"', "\u201d": '"', "\uff5b": "{", "\uff5d": "}"}
_BEGIN = re.compile(
    r"""\s*(?:\[\s*)*\{\s*(?:["\u201c\u201d]|'\w+'\s*:|\w+\s*:\s*["'\[{]|\})""",
)
_LAST_COMMA = re.compile(r",\s*[}\]]")
_NAMED = re.compile(r'"\s*:\s*(?:["\[{\d-]|true|false|null|NaN)')
# "surrogateescape" decodes bytes that are not UTF-8 to these characters
_BROKEN_BYTE = re.compile("[\udc80-\udcff]")


class Value(NamedTuple):
    """A top-level value in a file, or an error.

    `lines` contains the line numbers of list items, and `at` is the position of the value in the
    text. If the text was read line by line, `lines` is empty and `at` is -1.
    """

    line: int
    value: Any
    lines: list[int]
    at: int = -1


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines with their numbers from 1; only a line feed ends a line.

    (`str.splitlines` also splits at U+2028 and other characters, which JSON strings can contain
    unescaped.)
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def looks_like_json(text: str) -> bool:
    """Return whether text begins like a JSON object, or at least half of its lines look like JSON.

    Half of the lines are enough, because a broken line in a file of records must be reported, and
    must not cause the file to be read as raw text.
    """
    if _BEGIN.match(text):
        return True
    n = named = brackets = 0
    for _, line in numbered_lines(text):
        line = line.strip()
        n += 1
        if line[0] in '{["}],' or line[-1] in "}],{[":
            # The line is not parsed, because it can be long.
            named += _NAMED.search(line) is not None
            brackets += _BRACKETS.fullmatch(line) is not None
        elif line.count('"') > 3:
            named += len(_NAMED.findall(line)) > 1
    return named > 0 and 2 * (named + brackets) >= n


def json_values(text: str) -> tuple[list[Value], str]:
    """Return all values in a text, and the text that their positions `at` refer to.

    For a broken line, the values contain a `DataError`; other lines are not affected. If
    values span several lines, the text after an error cannot be read reliably, so this function
    raises `DataError` ("line N: ...").
    """
    lines = list(numbered_lines(text))
    if not text.isascii() and (damage := _BROKEN_BYTE.search(text)) is not None:
        values = [v for number, line in lines for v in _of_line(number, line)]
        if not _reaches_over_lines(lines, values):
            return values, text
        raise DataError(f"line {_line(text, damage.start())}: {broken_byte(damage[0])}")
    first = _of_line(*lines[0]) if lines else []
    if first and isinstance(first[0].value, DataError):
        try:
            return _all_of(text)
        except DataError as e:
            broken = e
        values = [v for number, line in lines for v in _of_line(number, line)]
    else:
        values = [v for number, line in lines for v in _of_line(number, line)]
        if not any(isinstance(v.value, DataError) for v in values):
            return values, text
        try:
            return _all_of(text)
        except DataError as e:
            broken = e
    if _are_lines(lines, values):
        return values, text
    raise broken


def _are_lines(lines: list[tuple[int, str]], values: list[Value]) -> bool:
    """Return whether a text in which some lines are broken contains one record per line."""
    good = any(isinstance(v.value, dict | list) and v.value for v in values)
    return good and not _reaches_over_lines(lines, values)


def _reaches_over_lines(lines: list[tuple[int, str]], values: list[Value]) -> bool:
    """Return whether the broken lines look like parts of multi-line lists and objects."""
    bad = {v.line for v in values if isinstance(v.value, DataError)}
    (first, begin), (last, end) = lines[0], lines[-1]
    if (first in bad and begin.startswith("[")) or (
        last in bad and end.rstrip(", \r").endswith("]")
    ):
        return True  # the beginning or the end of a list
    return any(
        number in bad and (line[0] in " \t" or _BRACKETS.fullmatch(line.strip()) is not None)
        for number, line in lines
    )


def _of_line(number: int, line: str) -> list[Value]:
    """Return the value or values on a line."""
    if (problem := broken_byte(line)) is not None:
        return [Value(number, problem, [])]
    text = line.strip().removeprefix("\ufeff")
    if text.endswith(","):
        text = text[:-1].rstrip()
    try:
        return [Value(number, _DECODER.decode(text), [])]
    except (ValueError, RecursionError) as e:
        reason, several = reason_for(e, column=True), getattr(e, "msg", "") == "Extra data"
    if several or _LAST_COMMA.search(text):
        try:
            return [Value(number, v.value, []) for v in _all_of(text)[0]]
        except DataError:
            pass  # the error for the line is clearer
    return [Value(number, DataError(reason), [])]


def _all_of(text: str) -> tuple[list[Value], str]:
    """Parse a whole text as a sequence of values. Raises `DataError`."""
    try:
        return list(_sequence(text)), text
    except DataError as e:
        without = _STRING_OR_COMMA.sub(_blank, text)
        if without == text:
            raise
        try:
            return list(_sequence(without)), without
        except DataError:
            raise e from None


def _blank(found: re.Match[str]) -> str:
    """Replace a trailing comma in a non-empty list or object with a space."""
    piece = found[0]
    if piece != ",":
        return piece
    at = found.start() - 1
    while at >= 0 and found.string[at] in " \t\r\n":
        at -= 1
    return piece if at < 0 or found.string[at] in "[{,:" else " "


def _sequence(text: str) -> Iterator[Value]:
    count = _Lines(text)
    at = _end(_BETWEEN, text, 0)
    while at < len(text):
        line = count.of(at)
        if text[at] == "[":
            items, places, end = list_items(text, at)
            yield Value(line, items, [count.of(place) for place in places], at)
        elif text[at] == "{":
            value, end = _decode(text, at)
            yield Value(line, value, [], at)
        elif text[at] in "]}":
            kind = "list" if text[at] == "]" else "object"
            raise DataError(f"line {line}: '{text[at]}' closes a {kind} that was not opened")
        else:
            raise DataError(f"line {line}: invalid JSON: expected a record or a list of records")
        at = _end(_BETWEEN, text, end)


def list_items(text: str, at: int) -> tuple[list[Any], list[int], int]:
    """Return the items of the list that begins at `at`, their positions, and the end position."""
    begin, items, places = at, [], []
    at = _end(_SPACE, text, at + 1)
    while text[at : at + 1] != "]":
        if at >= len(text):
            raise DataError(f"line {_line(text, begin)}: this '[' is not closed by a ']'")
        value, end = _decode(text, at)
        items.append(value)
        places.append(at)
        at = _end(_SPACE, text, end)
        if text[at : at + 1] == ",":
            at = _end(_SPACE, text, at + 1)
        elif at < len(text) and text[at] != "]":
            raise DataError(f"line {_line(text, at)}: invalid JSON: expected ',' or ']'")
    return items, places, at + 1


def member_at(text: str, at: int, key: str) -> int:
    """Return where the value of `key` begins in the object at `at`, which must contain the key."""
    at = _end(_SPACE, text, at + 1)
    while True:
        name, at = _decode(text, at)
        at = _end(_SPACE, text, _end(_SPACE, text, at) + 1)
        if name == key:
            return at
        _, at = _decode(text, at)
        at = _end(_SPACE, text, _end(_SPACE, text, at) + 1)


class _Lines:
    """A counter that converts ascending positions in a text to line numbers, from 1."""

    def __init__(self, text: str) -> None:
        self._text, self._line, self._at = text, 1, 0

    def of(self, at: int) -> int:
        if at > self._at:
            self._line += self._text.count("\n", self._at, at)
            self._at = at
        return self._line


def line_numbers(text: str, places: list[int]) -> list[int]:
    """Return the line numbers, from 1, of the positions `places`, which must be ascending."""
    count = _Lines(text)
    return [count.of(at) for at in places]


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    return found.end() if (found := pattern.match(text, at)) else at


def _decode(text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as e:
        line = e.lineno if isinstance(e, json.JSONDecodeError) else _line(text, at)
        raise DataError(f"line {line}: {reason_for(e, column=False)}") from e


def reason_for(e: Exception, *, column: bool) -> str:
    """Describe the error in a JSON text, with its column number if `column` is set."""
    if isinstance(e, json.JSONDecodeError):
        wide = _WIDE.get(e.doc[e.pos : e.pos + 1])
        hint = f" (write {wide}, not {e.doc[e.pos]})" if wide else ""
        return f"invalid JSON{f' at column {e.colno}' if column else ''}: {e.msg}{hint}"
    if isinstance(e, RecursionError):
        return "invalid JSON: nested too deeply"
    return f"invalid JSON: {shown(e)}"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object. Raises `ValueError` if a key appears twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f'the key "{shown(twice, 40)}" appears twice in an object')
    return found


def _constant(word: str) -> None:
    if word != "NaN":
        raise ValueError(f"{word} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=once, parse_constant=_constant, parse_float=spelled, parse_int=spelled_integer
)


def broken_byte(text: str) -> DataError | None:
    """Return an error that describes the first non-UTF-8 byte in a text, or None.

    The text must have been decoded with "surrogateescape".
    """
    found = None if text.isascii() else _BROKEN_BYTE.search(text)
    if found is None:
        return None
    byte = ord(found[0]) - 0xDC00
    column = len(text[: found.start()].encode("utf-8", "surrogateescape"))
    return DataError(f"not UTF-8: byte 0x{byte:02x} at offset {column} of the line")
