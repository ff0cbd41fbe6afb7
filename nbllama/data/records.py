"""Read training files: detect the kind of data, and read records as samples.

A bad record is either refused, or skipped and counted; its meaning is never guessed. If the name or
the first characters of a file show that it contains records, the file is never read as plain text
unless the format is set to `raw`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nbllama.data.columnar import MAGIC, parquet_rows
from nbllama.data.columns import has_table_header
from nbllama.data.containers import read_table
from nbllama.data.counts import Counts
from nbllama.data.data_file import RAW, DataFile
from nbllama.data.formats import FORMATS, Record, Style
from nbllama.data.in_memory import entries_in_memory
from nbllama.data.json_values import json_values, looks_like_json
from nbllama.data.magic import binary_kind
from nbllama.data.names import format_by_keys
from nbllama.data.parsed import Asked, FileRecords, named, parsed
from nbllama.data.splits import data_files, ending, says_records
from nbllama.data.text_checks import not_nfc_notes
from nbllama.data.text_file import decode_text, decode_utf8, read_bytes
from nbllama.data.unpack import Content, read_contents
from nbllama.data.wrapped import Entry, entries_of
from nbllama.errors import DataError, UsageError, shown
from nbllama.system.garbage import without_collection

CSV = "csv"
NAMES = (RAW, *FORMATS, CSV)
"""The allowed values of `--data-format`."""

_TABLES = (".csv", ".tsv")
_JSON_LINES = (".jsonl", ".ndjson")


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
    A file is read as records if its name has a suitable ending, if its contents start like JSON
    objects, if at least half of the non-blank lines look like JSON, or if the first line is a table
    header with the keys of a format. Otherwise, the file is raw text. `columns` maps the keys of a
    format to the names in the file. With `keep_mark` and the format `raw`, the file is decoded as
    UTF-8 without removing a byte-order mark.

    Raises `DataError` if a file cannot be read, is empty or is not text, if the keys of the records
    fit no format, and for the first bad record unless `skip_bad` is set, in which case bad records
    are collected. Data with no good records is always refused, as is a mix of record files and text
    files.
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
    return parsed(name, found, asked, notes)


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
        raise UsageError(
            f"{name}: the data format {data_format} is for files, not for records in memory"
        )
    entries = entries_in_memory(records)
    asked = Asked(data_format, columns or {}, style or Style(), skip_bad, files=False)
    return parsed(name, [(name, FileRecords(entries, "", len(entries)))], asked, [])


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
        return FileRecords(entries, "", len(entries), 0)
    text = decode_text(content.content, name, lenient=asked.skip_bad and data_format != RAW)
    n_lines = text.count("\n") + 1
    if data_format == RAW:
        return FileRecords(None, text, n_lines)
    if "\n" not in text:
        n_lines = text.count("\r") + 1
    wanted = asked.wanted is not None or says_records(name)
    if data_format == CSV or (ending(name) in _TABLES and not _begins_with_object(text)):
        return _table(text, name, n_lines, notes)
    if looks_like_json(text):
        return FileRecords(_json(text, name, asked, notes), "", n_lines)
    if (not wanted or data_format) and has_table_header(text, asked.columns):
        return _table(text, name, n_lines, notes)
    if wanted:
        return FileRecords(_json(text, name, asked, notes), "", n_lines)
    return FileRecords(None, text, n_lines)


def _table(text: str, name: str, n_lines: int, notes: list[str]) -> FileRecords:
    table = read_table(text, name)
    notes += table.notes(name)
    return FileRecords(table.rows, "", n_lines, table.header)


def _begins_with_object(text: str) -> bool:
    """Return whether a file whose name suggests a table contains JSON."""
    return text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and looks_like_json(text)


def _json(text: str, name: str, asked: Asked, notes: list[str]) -> list[Entry]:
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")  # JSON strings never contain raw line breaks

    def known(record: Record) -> bool:
        try:
            return format_by_keys(named(record, asked, Counts.empty())) is not None
        except DataError:
            return True

    try:
        values, whole = json_values(text)
        lines: list[str] = []
        entries = list(
            entries_of(values, whole, known, lines, per_line=ending(name) in _JSON_LINES)
        )
    except DataError as e:
        raise DataError(f"{shown(name, 400)}, {e}") from e.__cause__
    notes += [f"{shown(name, 400)}: {line}" for line in lines]
    return entries
