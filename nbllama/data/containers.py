"""Read tables with named columns (CSV, TSV) as records.

A table with a syntax error is refused as a whole. `nbllama.data.json_values` reads JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from nbllama.data.formats.record import Record
from nbllama.data.json_values import broken_byte
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, shown

DELIMITERS = (",", "\t", ";")


def table_rows(text: str, path: str) -> Iterator[Entry]:
    """Yield the rows of a table, using the names in its first row as keys.

    A line such as `sep=;` before the table, as written by Excel, specifies the delimiter.
    """
    header_line = text.lstrip().splitlines()[0] if text.strip() else ""
    delimiter = max(DELIMITERS, key=header_line.count)
    if header_line.strip() in [f"sep={d}" for d in DELIMITERS]:
        delimiter = header_line.strip()[-1]
        text = text.replace(header_line, "", 1)  # an empty line stays, so line numbers are right
    limit = csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not names and row:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    raise DataError(
                        f"{shown(path)}, line {begins}: two columns have the same name; rename one"
                    )
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
