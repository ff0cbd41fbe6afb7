"""Convert the records in files to samples, in the format that fits most of the records.

A bad record is either refused, or skipped and counted; its meaning is never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from nbllama.data.columns import renamed
from nbllama.data.counts import Counts, count_keys
from nbllama.data.data_file import Bad, DataFile, Part
from nbllama.data.formats import FORMATS, Format, Record, Style, plain_ones
from nbllama.data.names import format_by_keys, known_names
from nbllama.data.no_format import no_format
from nbllama.data.splits import ending, says_records
from nbllama.data.text_checks import not_nfc_notes
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, shown


class FileRecords(NamedTuple):
    """The contents of one file: records or text, and the number of lines.

    `header` is the line with the column names of a table (0 for Parquet), or None if each record
    contains its own keys.
    """

    entries: list[Entry] | None
    text: str
    n_lines: int
    header: int | None = None


class Asked(NamedTuple):
    """The options for reading files, or records in memory if `files` is false."""

    data_format: str | None
    columns: Mapping[str, str]
    style: Style
    skip_bad: bool
    files: bool = True

    @property
    def wanted(self) -> Format | None:
        """Return the requested format, or None to detect it."""
        return FORMATS.get(self.data_format or "")


class _Read(NamedTuple):
    """A record with the keys of a format (or an error), and the lines of the record and keys."""

    line: int
    keys_line: int
    record: Record | DataError
    table: bool


def named(record: Record, asked: Asked, counts: Counts) -> Record:
    """Return the record with its keys renamed to the keys of a format. Raises `DataError`."""
    return known_names(
        renamed(record, asked.columns),
        asked.wanted,
        counts,
        guess=not asked.columns,
        style=asked.style,
    )


def parsed(
    path: str, found: list[tuple[str, FileRecords]], asked: Asked, notes: list[str]
) -> DataFile:
    """Read the samples from record files."""
    counts = Counts.empty()
    parts, first = [], 1
    entries: list[_Read] = []
    for name, records in found:
        parts.append(Part(name, first))
        table = records.header is not None
        for line, record in records.entries or ():
            line += first - 1
            keys_line = first + records.header - 1 if records.header else line
            if not isinstance(record, DataError):
                try:
                    record = named(record, asked, counts)
                except DataError as e:
                    record, line = e, keys_line
            entries.append(_Read(line, keys_line, record, table))
        first += records.n_lines
    several = tuple(parts) if len(parts) > 1 or parts[0].name != path else ()
    data = DataFile(path, "chat", "", "", [], [], (), several)
    format = asked.wanted or _format(entries, data, asked, counts)
    used: Counter[str] = Counter()
    for line, keys_line, record, table in entries:
        try:
            if isinstance(record, DataError):
                raise record
            its_format = format if asked.wanted else _format_among(record, format)
            if table and not record.keys() >= set(its_format.keys):
                line = keys_line
            data.samples.append((line, its_format.read(record, asked.style)))
            used[its_format.name] += 1
            count_keys(record, its_format, counts)
        except DataError as e:
            reason = counts.reason(e, record)
            if not asked.skip_bad:
                raise DataError(f"{data.where(line)}: {reason}") from e.__cause__
            data.bad.append(Bad(line, reason))
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


def _format(entries: list[_Read], data: DataFile, asked: Asked, counts: Counts) -> Format:
    """Return the most common format of these records. Raises `DataError` if none fits a format."""
    votes: Counter[str] = Counter()
    first: tuple[_Read, Record] | None = None
    for entry in entries:
        if isinstance(entry.record, DataError):
            continue
        first = first or (entry, entry.record)
        if (found := format_by_keys(entry.record)) is not None:
            votes[found.name] += 1
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    if first is None:
        if not entries:
            raise DataError(f"{shown(data.path)} contains nothing to train on: it has no records")
        reason = str(entries[0].record)
        raise DataError(f"{data.where(entries[0].line)}: {reason}{counts.other_name(reason)}")
    entry, record = first
    name, _ = data.place(entry.line)
    parquet = entry.table and ending(name) == ".parquet"
    where = shown(name, 400) if parquet else data.where(entry.keys_line)
    raw = asked.files and not entry.table and not says_records(name)
    raise no_format(record, where, table=entry.table, raw=raw, columns=asked.columns)
