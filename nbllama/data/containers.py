"""Read tables with named columns (CSV, TSV) as records.

A table with a syntax error is refused as a whole. `nbllama.data.json_values` reads JSON.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from typing import NamedTuple

from nbllama.data.folding import trimmed
from nbllama.data.formats.checks import Record
from nbllama.data.json_values import broken_byte
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, counted, shown

_NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}
DELIMITERS = tuple(_NAMES)
_OTHER_DELIMITER = re.compile("[|\uff0c\uff1b\u3001\uff5c]")  # also full-width characters
# What pandas, R and databases write for a missing value.
_MISSING = frozenset(("NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A"))


class Table(NamedTuple):
    """The rows of a table as records, and the line number of its header.

    `n_spaced` is the number of cells below the header that begin with a space.
    `missing` counts the cells that contain only a word for a missing value, by word and column.
    `n_blank` is the number of rows without any text, which are left out.
    """

    header: int
    rows: list[Entry]
    n_spaced: int
    missing: Counter[tuple[str, str]]
    n_blank: int

    def notes(self, path: str) -> list[str]:
        """Return a line for each kind of suspicious cell."""
        out = []
        if self.n_blank:
            rows = counted(self.n_blank, "row was", "rows were")
            out.append(f"{shown(path, 400)}: {rows} skipped because all cells are empty")
        if self.n_spaced:
            cells = counted(self.n_spaced, "cell begins", "cells begin")
            out.append(
                f"{shown(path, 400)}: {cells} with a space, which is part of the text; remove the "
                "spaces after the delimiters if they should not be trained on"
            )
        if self.missing:
            cells = counted(self.missing.total(), "cell contains", "cells contain")
            listed = ", ".join(f"{w} in {c} ({n})" for (w, c), n in self.missing.most_common(8))
            out.append(
                f"{shown(path, 400)}: {cells} only a missing-value marker, which is read as "
                f"text: {shown(listed, 200)}; leave the cells empty if their values are missing"
            )
        return out


def read_table(text: str, path: str) -> Table:
    """Return the rows of a table, using the names in its first row as keys.

    A line such as `sep=;` before the table, as written by Excel, specifies the delimiter. Raises
    `DataError` if the table is broken, or if the names are not unique.
    """
    header_line = text.lstrip().splitlines()[0] if text.strip() else ""
    delimiter = max(DELIMITERS, key=header_line.count)
    if header_line.strip() in [f"sep={d}" for d in DELIMITERS]:
        delimiter = header_line.strip()[-1]
        text = text.replace(header_line, "", 1)  # keeps the line break and so the line numbers
    limit = csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[Entry] = []
    header = line = 1
    n_spaced = n_blank = 0
    missing: Counter[tuple[str, str]] = Counter()
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not names and row:
                names, header = [trimmed(name) for name in row], begins
                if (problem := _problem(names)) is not None:
                    raise DataError(f"{shown(path)}, line {begins}: {problem}")
            elif row and not any(map(str.strip, row)):
                n_blank += 1
            elif row:
                rows.append(Entry(begins, _row(names, row, delimiter)))
                n_spaced += sum(cell.startswith(" ") for cell in row)
                if not _MISSING.isdisjoint(row):
                    missing.update(
                        (w, n) for n, w in zip(names, row, strict=False) if w in _MISSING
                    )
    except csv.Error as e:
        hint = "; is a quotation mark missing?" if "unexpected end" in str(e) else ""
        raise DataError(f"{shown(path)}, line {line}: broken table: {e}{hint}") from e
    finally:
        csv.field_size_limit(limit)
    return Table(header, rows, n_spaced, missing, n_blank)


def _problem(names: list[str]) -> str | None:
    """Return what is wrong with the names of the columns, if anything."""
    if names.count("") > 1:
        return "two columns have no name; name or remove them"
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        return f"two columns have the same name ({shown(name, 40)}); rename one"
    if len(names) == 1 and (found := _OTHER_DELIMITER.search(names[0])) is not None:
        return (
            f"the columns ({shown(names[0], 80)}) are separated by '{found[0]}'; use commas, tabs "
            "or semicolons instead"
        )
    return None


def _row(names: list[str], row: list[str], delimiter: str) -> Record | DataError:
    if len(row) != len(names):
        line = f"the row has {counted(len(row), 'cell')}, but the header has {len(names)}"
        if len(row) > len(names):
            name = _NAMES[delimiter]
            return DataError(f'{line}; put text that contains a {name} in quotes ("...")')
        missing = len(names) - len(row)
        others = _OTHER_DELIMITER.findall(row[-1])
        hint = f"; is '{others[0]}' meant as a delimiter?" if len(others) == missing else ""
        return DataError(line + hint)
    problem = next(filter(None, map(broken_byte, row)), None)
    return problem or dict(zip(names, row, strict=True))
