"""What holds records: JSON lines, a list in one JSON document, a table with named columns.

A line that is broken leaves the others readable, so it is one bad record; a JSON document or a
table that is broken in itself is refused as a whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from nbllama.data.formats.record import Record, kind_of
from nbllama.errors import DataError, shown

DELIMITERS = (",", "\t", ";")
_BROKEN_BYTES = range(0xDC80, 0xDD00)  # what "surrogateescape" makes of bytes that are not UTF-8


class Entry(NamedTuple):
    """A record of a file, or why there is none, and the line that it begins in (from 1)."""

    line: int
    record: Record | DataError


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; only "\\n" ends a line.

    (`str.splitlines` also breaks at U+2028 and others, which JSON strings may hold as they are.)
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def looks_like_object(line: str) -> bool:
    """Whether a line may be one whole JSON object, without reading it."""
    line = line.strip()
    return line.startswith("{") and line.endswith("}")


def json_line(number: int, line: str) -> Entry:
    if (problem := broken_byte(line)) is not None:
        return Entry(number, problem)
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        return Entry(number, DataError(f"broken JSON at column {e.colno}: {e.msg}"))
    except (ValueError, RecursionError) as e:
        return Entry(number, DataError(f"broken JSON: {e}"))
    return Entry(number, as_record(value))


def as_record(value: Any) -> Record | DataError:
    if isinstance(value, dict):
        return value
    return DataError(f"a record is an object with named values, not {kind_of(value)}")


def broken_byte(text: str) -> DataError | None:
    """What is wrong with text that was decoded from bytes that are not UTF-8."""
    if text.isascii():
        return None
    for at, c in enumerate(text):
        if ord(c) in _BROKEN_BYTES:
            byte, column = ord(c) - 0xDC00, len(text[:at].encode("utf-8", "surrogateescape"))
            return DataError(f"not UTF-8: byte 0x{byte:02x} at offset {column} of the line")
    return None


def document_items(text: str, path: str, strict: bool) -> Iterator[Entry]:
    """The objects of a JSON document, which is a list of them or a single one over several lines.

    They are read one by one, so that each one's line is known. What does not begin with an object
    gives none, unless `strict` says that it is a list of records.
    Raises `DataError` for a list that is broken further on.
    """
    begin = text.lstrip()[:1]
    if begin == "{":
        yield from _single(text)
    if begin != "[":
        return
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    first = True
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if text[at : at + 1] == "]" and not text[at + 1 :].strip():
            return
        line, counted = line + text.count("\n", counted, at), at
        try:
            if not first:
                if text[at : at + 1] != ",":
                    raise json.JSONDecodeError("',' or ']' expected", text, at)
                at = json.decoder.WHITESPACE.match(text, at + 1).end()  # type: ignore[attr-defined]
                line, counted = line + text.count("\n", counted, at), at
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            if first and not strict:
                return  # text that begins with a bracket
            row = e.lineno if isinstance(e, json.JSONDecodeError) else line
            reason = e.msg if isinstance(e, json.JSONDecodeError) else str(e)
            raise DataError(f"{shown(path)}, line {row}: broken JSON: {reason}") from e
        if first and not strict and not isinstance(value, dict):
            return
        first = False
        yield Entry(line, as_record(value))


def _single(text: str) -> Iterator[Entry]:
    if "\n" not in text.strip():
        return  # a line of JSON lines
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield Entry(text.count("\n", 0, text.index("{")) + 1, as_record(value))


def table_rows(text: str, path: str) -> Iterator[Entry]:
    """The rows of a table by the names in its first row."""
    header_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header_line.count)
    limit = csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not names:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    raise DataError(f"{shown(path)}, line {begins}: a column comes twice")
            elif row:
                yield Entry(begins, _row(names, row))
    except csv.Error as e:
        raise DataError(f"{shown(path)}, line {line}: broken table: {e}") from e
    finally:
        csv.field_size_limit(limit)


def _row(names: list[str], row: list[str]) -> Record | DataError:
    if len(row) != len(names):
        return DataError(f"{len(row)} cells, but the header has {len(names)}")
    problem = next(filter(None, map(broken_byte, row)), None)
    return problem or dict(zip(names, row, strict=True))
