"""A series of measurements in a file: one JSON object per line, written after each measurement.

An interrupted series continues where it stopped: cases with rows in the file are not measured
again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from nbllama.errors import NbllamaError

Rows = list[dict[str, Any]]
Case = TypeVar("Case")


def read_rows(path: Path) -> Rows:
    """Return the rows of an earlier, possibly unfinished, series; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def series(
    path: Path,
    cases: Iterable[Case],
    done: Callable[[Case, Rows], bool],
    measure: Callable[[Case], Iterable[dict[str, Any]]],
    table: Callable[[Rows], str],
) -> int:
    """Measure the cases that are not `done` in the file, print its table; return the exit code."""
    try:
        for case in cases:
            if done(case, read_rows(path)):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row) + "\n" for row in measure(case))
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
        print(table(read_rows(path)))
    except NbllamaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0
