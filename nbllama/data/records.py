"""Read training files: detect the kind of data, and read records as samples.

A bad record is either refused, or skipped and counted; its meaning is never guessed. If the name or
the first characters of a file show that it contains records, the file is never read as plain text
unless the format is set to `raw`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nbllama.data.columnar import MAGIC, parquet_rows
from nbllama.data.columns import has_table_header, renamed
from nbllama.data.containers import table_rows
from nbllama.data.counts import Counts, count_keys
from nbllama.data.data_file import RAW, Bad, DataFile, Part
from nbllama.data.formats import FORMATS, Format, Record, Style, plain_ones
from nbllama.data.formats.record import keys_of
from nbllama.data.json_values import json_values, looks_like_json
from nbllama.data.keys import columns_option
from nbllama.data.magic import binary_kind
from nbllama.data.names import format_by_keys, known_names, text_columns
from nbllama.data.splits import data_files, ending, says_records
from nbllama.data.text_checks import not_nfc_notes
from nbllama.data.text_file import decode_text, decode_utf8, read_bytes
from nbllama.data.unpack import Content, read_contents
from nbllama.data.wrapped import Entry, as_record, entries_of
from nbllama.errors import DataError, UsageError, shown
from nbllama.system.garbage import without_collection

CSV = "csv"
NAMES = (RAW, *FORMATS, CSV)
"""The allowed values of `--data-format`."""

_TABLES = (".csv", ".tsv")


class FileRecords(NamedTuple):
    """The contents of one file: records or text, and the number of lines."""

    entries: list[Entry] | None
    text: str
    n_lines: int


class Asked(NamedTuple):
    """The options for reading files."""

    data_format: str | None
    columns: Mapping[str, str]
    style: Style
    skip_bad: bool

    @property
    def wanted(self) -> Format | None:
        """Return the requested format, or None to detect it."""
        return FORMATS.get(self.data_format or "")


@without_collection()
def open_data(
    path: str | os.PathLike[str],
    data_format: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    style: Style | None = None,
    skip_bad: bool = False,
    keep_mark: bool = False,
) -> DataFile:
    """Read the files that `path` refers to (`data_files`), compressed or not.

    `data_format` is one of `NAMES`; if it is not given, the name and contents determine the format.
    A file contains records if its name has a suitable ending, if its contents start like JSON
    objects, if at least half of the non-blank lines look like JSON, or if the first line is a table
    header with the keys of a format. Otherwise, the file is raw text. `columns` maps the keys of a
    format to the names in the file. `keep_mark` keeps the bytes of a raw-text file unchanged,
    including a byte-order mark.

    Raises `DataError` if a file cannot be read, is empty or is not text, if the keys of the records
    fit no format, and for the first bad record, unless `skip_bad` collects bad records. Data
    with no good records is always refused, as is a mix of record files and text files.
    """
    if data_format not in (None, *NAMES):
        raise ValueError(f"data format {data_format!r} is not one of {', '.join(NAMES)}")
    name = os.fspath(path)
    if keep_mark and data_format == RAW:
        text = decode_utf8(read_bytes(path), path, keep_mark=True)
        return DataFile(name, RAW, RAW, text, [], [], texts=(text,))
    asked = Asked(data_format, columns or {}, style or Style(), skip_bad)
    found, notes = read_files(path, asked)
    if all(records.entries is None for _, records in found):
        texts = tuple(records.text for _, records in found)
        notes += not_nfc_notes(texts, "texts")
        return DataFile(name, RAW, RAW, texts[0], [], [], tuple(notes), (), texts)
    for other, records in found:
        if records.entries is None:
            raise DataError(
                f"{shown(other, 400)} contains plain text, but the other files contain records; "
                "pass only files of the same kind"
            )
    return _parsed(name, found, asked, notes)


def read_files(
    path: str | os.PathLike[str], asked: Asked
) -> tuple[list[tuple[str, FileRecords]], list[str]]:
    """Return the name and contents of each file that `path` refers to, and messages to the user.

    Raises the same errors as `open_data`, except for errors in records, which are not yet read.
    """
    chosen = data_files(path)
    notes = list(chosen.notes)
    found: list[tuple[str, FileRecords]] = []
    for file in chosen.files:
        unpacked = read_contents(file)
        notes += unpacked.notes
        found += [(c.name, _records(c, asked, notes)) for c in unpacked.contents]
    if not found:
        raise DataError(f"training data {shown(path, 400)} is empty")
    return found, notes


def entries_in_memory(records: Sequence[Mapping[str, Any] | str]) -> list[Entry]:
    """Return records in memory as entries, numbered like the lines of a file."""
    entries = []
    for number, record in enumerate(records, 1):
        value: Any = {"text": record} if isinstance(record, str) else record
        if isinstance(value, Mapping):
            value = dict(value)
        entries.append(Entry(number, as_record(value)))
    return entries


def open_records(
    records: Sequence[Mapping[str, Any] | str],
    name: str,
    data_format: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    style: Style | None = None,
    skip_bad: bool = False,
) -> DataFile:
    """Read records in memory as if each were a line in a file called `name`.

    A string is treated as the record `{"text": string}`. Raises the same errors as `open_data`, and
    `UsageError` for a format that only files can have.
    """
    if data_format in (RAW, CSV):
        raise UsageError(f"{name}: the data format {data_format} is for files, not for records")
    entries = entries_in_memory(records)
    asked = Asked(data_format, columns or {}, style or Style(), skip_bad)
    return _parsed(name, [(name, FileRecords(entries, "", len(entries)))], asked, [])


def _records(content: Content, asked: Asked, notes: list[str]) -> FileRecords:
    """Return the records or the text in one file."""
    name, data_format = content.name, asked.data_format
    called = ending(name) == ".parquet"
    is_parquet = content.content.startswith(MAGIC) and (
        called or binary_kind(content.content) is not None
    )
    if data_format != RAW and called and not is_parquet:
        raise DataError(
            f"{shown(name, 400)} is named like a Parquet file but is not one; rename it"
        )
    if data_format != RAW and is_parquet:
        entries = list(parquet_rows(content.content, name))
        return FileRecords(entries, "", len(entries))
    text = decode_text(content.content, name, lenient=asked.skip_bad and data_format != RAW)
    n_lines = text.count("\n") + 1
    if data_format == RAW:
        return FileRecords(None, text, n_lines)
    if "\n" not in text:
        n_lines = text.count("\r") + 1
    wanted = asked.wanted is not None or says_records(name)
    if data_format == CSV or (ending(name) in _TABLES and not _begins_with_object(text)):
        return FileRecords(list(table_rows(text, name)), "", n_lines)
    if looks_like_json(text):
        return FileRecords(_json(text, name, asked, notes), "", n_lines)
    if (not wanted or data_format) and has_table_header(text, asked.columns):
        return FileRecords(list(table_rows(text, name)), "", n_lines)
    if wanted:
        return FileRecords(_json(text, name, asked, notes), "", n_lines)
    return FileRecords(None, text, n_lines)


def _begins_with_object(text: str) -> bool:
    """Return whether a file whose name suggests a table contains JSON."""
    return text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and looks_like_json(text)


def _json(text: str, name: str, asked: Asked, notes: list[str]) -> list[Entry]:
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")  # JSON strings never contain raw line breaks

    def known(record: Record) -> bool:
        try:
            return format_by_keys(_named(record, asked, Counts.empty())) is not None
        except DataError:
            return True

    try:
        values, whole = json_values(text)
        lines: list[str] = []
        entries = list(entries_of(values, whole, known, lines))
    except DataError as e:
        raise DataError(f"{shown(name, 400)}, {e}") from e.__cause__
    notes += [f"{shown(name, 400)}: {line}" for line in lines]
    return entries


def _named(record: Record, asked: Asked, counts: Counts) -> Record:
    """Return the record with its keys renamed to the keys of a format. Raises `DataError`."""
    return known_names(
        renamed(record, asked.columns), asked.wanted, counts, guess=not asked.columns
    )


def _parsed(
    path: str, found: list[tuple[str, FileRecords]], asked: Asked, notes: list[str]
) -> DataFile:
    """Read the samples from record files."""
    counts = Counts.empty()
    parts, first = [], 1
    entries: list[Entry] = []
    for name, records in found:
        parts.append(Part(name, first))
        for line, record in records.entries or ():
            if not isinstance(record, DataError):
                try:
                    record = _named(record, asked, counts)
                except DataError as e:
                    record = e
            entries.append(Entry(first + line - 1, record))
        first += records.n_lines
    several = tuple(parts) if len(parts) > 1 or parts[0].name != path else ()
    data = DataFile(path, "chat", "", "", [], [], (), several)
    format = asked.wanted or _format(entries, data)
    used: Counter[str] = Counter()
    for line, record in entries:
        try:
            if isinstance(record, DataError):
                raise record
            its_format = format if asked.wanted else _format_among(record, format)
            data.samples.append((line, its_format.read(record, asked.style)))
            used[its_format.name] += 1
            count_keys(record, its_format, counts)
        except DataError as e:
            if not asked.skip_bad:
                raise DataError(f"{data.where(line)}: {e}") from e.__cause__
            data.bad.append(Bad(line, str(e)))
    if not data.samples:
        if not data.bad:
            raise DataError(f"{shown(path)} contains nothing to train on: it has no records")
        line, reason = data.bad[0]
        place = data.short_place(line)
        raise DataError(f"{shown(path)} contains nothing to train on; {place}: {reason}")
    if len(used) > 1:
        notes.append(
            "records in several formats: " + ", ".join(f"{n} {f}" for f, n in used.items())
        )
    notes += counts.notes(chats=data.has_chats)
    notes += not_nfc_notes(plain_ones(s for _, s in data.samples), "records")
    read = counts.read_line(asked.columns, chats=data.has_chats)
    return data._replace(format=format.name, notes=tuple(notes), read=read)


def _format_among(record: Record, format: Format) -> Format:
    """Return the format of a record, preferring `format` if the record has the keys for it."""
    if format.knows(record):
        return format
    return format_by_keys(record) or format


def _format(entries: list[Entry], data: DataFile) -> Format:
    """Return the most common format of these records. Raises `DataError` if none fits a format."""
    votes: Counter[str] = Counter()
    good = [(line, e) for line, e in entries if not isinstance(e, DataError)]
    for _, record in good:
        if (found := format_by_keys(record)) is not None:
            votes[found.name] += 1
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    if not good:
        if not entries:
            raise DataError(f"{shown(data.path)} contains nothing to train on: it has no records")
        raise DataError(f"{data.where(entries[0].line)}: {entries[0].record}")
    known = "; ".join(" and ".join(f.keys) for f in FORMATS.values())
    line, record = good[0]
    columns = columns_option(dict(zip(("prompt", "completion"), text_columns(record), strict=True)))
    raise DataError(
        f"{data.where(line)}: the keys ({keys_of(record)}) match no format ({known}); name them, "
        f"for example with {columns}, or pass --data-format raw"
    )
