"""A training file, read once: what kind of file it is, and its records as samples.

Nothing of a bad record is guessed at: it is refused, or skipped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nbllama.data.containers import (
    DELIMITERS,
    Entry,
    as_record,
    document_items,
    json_line,
    looks_like_object,
    numbered_lines,
    table_rows,
)
from nbllama.data.formats import FORMATS, Conversation, Format, Record, Sample, Style, format_of
from nbllama.data.formats.record import keys_of
from nbllama.data.text_file import decode_utf8, read_bytes
from nbllama.errors import DataError, UsageError, shown

RAW = "raw"
CSV = "csv"
NAMES = (RAW, *FORMATS, CSV)
"""What `--data-format` may say."""

_TABLES = (".csv", ".tsv")


class Bad(NamedTuple):
    """A bad record: its line and the reason."""

    line: int
    reason: str


class DataFile(NamedTuple):
    """A training file, read and parsed.

    kind: "raw" (then `text` is all there is) or "chat". format: name in `FORMATS`, or "raw".
    samples: (line, sample) of each good record; bad: the others, if they may be skipped.
    """

    path: str
    kind: str
    format: str
    text: str
    samples: list[tuple[int, Sample]]
    bad: list[Bad]

    @property
    def has_chats(self) -> bool:
        """Whether a chat template is needed."""
        return any(isinstance(sample, Conversation) for _, sample in self.samples)


def open_data(
    path: str | os.PathLike[str],
    data_format: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    style: Style | None = None,
    skip_bad: bool = False,
    keep_mark: bool = False,
) -> DataFile:
    """Read a training file. Without `data_format` (one of `NAMES`) its content decides:

    records, if at least half of the lines that are not blank are JSON objects, or if it is a JSON
    document of objects, or a table (`.csv`, `.tsv`, or a header line), with the keys of a format;
    else raw text. `columns`: the file's name for a format's key. `keep_mark`: as in `decode_utf8`.

    Raises `DataError` for a file that cannot be read, is empty or is not UTF-8, for JSON lines
    whose keys are those of no format, and for the first bad record, unless `skip_bad` collects
    them. A file without a good record is refused anyway.
    """
    if data_format not in (None, *NAMES):
        raise ValueError(f"data format {data_format!r} is not one of {', '.join(NAMES)}")
    name, content = os.fspath(path), read_bytes(path)
    lenient = skip_bad and data_format != RAW
    if lenient:
        text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    else:
        text = decode_utf8(content, path, keep_mark=keep_mark and data_format == RAW)
    found = None if data_format == RAW else _entries(text, name, data_format, columns or {})
    if found is None:
        return DataFile(name, RAW, RAW, decode_utf8(content, path, keep_mark=keep_mark), [], [])
    return _data_file(name, *found, style or Style(), skip_bad)


def open_records(
    records: Sequence[Mapping[str, Any] | str],
    name: str,
    data_format: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    style: Style | None = None,
    skip_bad: bool = False,
) -> DataFile:
    """Records in memory as if each were a line of a file called `name`; a string is the record
    `{"text": string}`. Raises as `open_data`, and `UsageError` for a format of files only.
    """
    if data_format in (RAW, CSV):
        raise UsageError(f"{name}: the data format {data_format} is for files, not for records")
    entries = []
    for number, record in enumerate(records, 1):
        value = {"text": record} if isinstance(record, str) else record
        if isinstance(value, Mapping):
            value = dict(value)
        entries.append(_renamed(Entry(number, as_record(value)), columns or {}))
    format = FORMATS[data_format] if data_format else _known(entries, name)
    return _data_file(name, entries, format, style or Style(), skip_bad)


def _data_file(
    name: str, entries: list[Entry], format: Format, style: Style, skip_bad: bool
) -> DataFile:
    samples, bad = _parse(name, entries, format, style, skip_bad)
    if not samples:
        reason = f"; line {bad[0].line}: {bad[0].reason}" if bad else ": it holds no record"
        raise DataError(f"nothing in {shown(name)} can be trained{reason}")
    return DataFile(name, "chat", format.name, "", samples, bad)


def _entries(
    text: str, path: str, data_format: str | None, columns: Mapping[str, str]
) -> tuple[list[Entry], Format] | None:
    """Records and their format; None for raw text."""
    wanted = FORMATS.get(data_format or "")
    if data_format != CSV and not path.lower().endswith(_TABLES):
        entries = [_renamed(e, columns) for e in document_items(text, path, strict=bool(wanted))]
        if entries and (found := wanted or format_of(_good(entries))):
            return entries, found
        lines = _json_lines(text, wanted is not None)
        if lines or wanted:
            entries = [_renamed(e, columns) for e in lines]
            return entries, wanted or _known(entries, path)
        if not _has_table_header(text, columns):
            return None
    entries = [_renamed(e, columns) for e in table_rows(text, path)]
    return entries, wanted or _known(entries, path)


def _json_lines(text: str, wanted: bool) -> list[Entry]:
    """The lines as records, if they are `wanted` or at least half of them are objects; else none.

    (Half, not all: one broken line in a file of records must be told, not make it raw text.)
    """
    lines = list(numbered_lines(text))
    # Without reading what is plainly no JSON: a text may be long.
    if not wanted and 2 * sum(looks_like_object(line) for _, line in lines) < len(lines):
        return []
    entries = [json_line(number, line) for number, line in lines]
    n_objects = sum(not isinstance(e.record, DataError) for e in entries)
    return entries if wanted or 2 * n_objects >= len(lines) else []


def _known(entries: list[Entry], path: str) -> Format:
    """The format of these records, of which there must be one."""
    records = list(_good(entries))
    found = format_of(records)
    if found is not None:
        return found
    if not records:
        first = entries[0] if entries else None
        why = f", line {first.line}: {first.record}" if first else " holds no record"
        raise DataError(f"{shown(path)}{why}")
    known = "; ".join(" and ".join(f.keys) for f in FORMATS.values())
    line = next(e.line for e in entries if not isinstance(e.record, DataError))
    raise DataError(
        f"{shown(path)}, line {line}: the keys ({keys_of(records[0])}) are those of no format "
        f"({known}); name them with --data-columns, or give --data-format raw"
    )


def _good(entries: Iterable[Entry]) -> Iterator[Record]:
    return (e.record for e in entries if not isinstance(e.record, DataError))


def _parse(
    path: str, entries: list[Entry], format: Format, style: Style, skip_bad: bool
) -> tuple[list[tuple[int, Sample]], list[Bad]]:
    samples: list[tuple[int, Sample]] = []
    bad = []
    for line, record in entries:
        try:
            if isinstance(record, DataError):
                raise record
            samples.append((line, format.read(record, style)))
        except DataError as e:
            if not skip_bad:
                raise DataError(f"{shown(path)}, line {line}: {e}") from e.__cause__
            bad.append(Bad(line, str(e)))
    return samples, bad


def _has_table_header(text: str, columns: Mapping[str, str]) -> bool:
    """Whether the first line names all columns of a format of two or more."""
    header = text.lstrip().split("\n", 1)[0].strip()
    for delimiter in DELIMITERS:
        names = {name.strip().strip('"') for name in header.split(delimiter)}
        names |= {key for key, name in columns.items() if name in names}
        if any(len(f.keys) > 1 and names.issuperset(f.keys) for f in FORMATS.values()):
            return True
    return False


def _renamed(entry: Entry, columns: Mapping[str, str]) -> Entry:
    """The record with the file's own names replaced by those of a format."""
    if not columns or isinstance(entry.record, DataError):
        return entry
    for name in columns.values():
        if name not in entry.record:
            return Entry(entry.line, DataError(f'the key "{shown(name, 40)}" is missing'))
    own = {k: v for k, v in entry.record.items() if k not in columns.values()}
    return Entry(entry.line, own | {key: entry.record[name] for key, name in columns.items()})


def parse_columns(text: str) -> dict[str, str]:
    """`--data-columns`: "prompt=question,completion=answer" as {"prompt": "question", ...}.

    Raises `UsageError` for another form, and for a key that no format has.
    """
    keys = {key for f in FORMATS.values() for key in f.keys} | {"input", "system"}
    out = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, name = (p.strip() for p in part.partition("="))
        if not equals or not name or key not in keys:
            raise UsageError(
                f"--data-columns: '{shown(part)}' is not KEY=NAME with KEY one of "
                f"{', '.join(sorted(keys))}"
            )
        out[key] = name
    return out
