"""Convert the records in files to samples, in the format that fits most of them.

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
from nbllama.data.formats.record import keys_of
from nbllama.data.keys import columns_option
from nbllama.data.names import format_by_keys, known_names, text_columns
from nbllama.data.text_checks import not_nfc_notes
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, shown


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


def named(record: Record, asked: Asked, counts: Counts) -> Record:
    """Return the record with its keys renamed to the keys of a format. Raises `DataError`."""
    return known_names(
        renamed(record, asked.columns), asked.wanted, counts, guess=not asked.columns
    )


def parsed(
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
                    record = named(record, asked, counts)
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
