"""A log of JSON lines, as what happened: of a run that was killed and continued, what counts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from nbllama.errors import DataError, shown

Row = dict[str, Any]


@dataclass
class Run:
    """Rows as in the log.

    `run`: the last start; `steps`, `evaluations`: one for each iteration, in order, up to what was
    done last; `end`: how the last start ended, and `verdict`: what came out, both {} while it
    continues.
    """

    run: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    end: Row = field(default_factory=dict)
    verdict: Row = field(default_factory=dict)


def read_log(path: str) -> Run:
    """Read the run in a log. Lines that are cut, as a kill leaves them, are skipped.

    Raises `DataError` for a file that cannot be read or holds no iteration and no start of a run.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rows = [row for line in file if (row := _row(line)) is not None]
    except OSError as e:
        raise DataError(f"{shown(path, 400)}: {e.strerror or e}") from e
    run = Run()
    steps: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    for row in rows:
        at = row["iter"]
        if row.get("event") == "run":
            # It goes on after iteration `at`: what another one did later was lost.
            steps = {i: r for i, r in steps.items() if i <= at}
            evaluations = {i: r for i, r in evaluations.items() if i <= at}
            run.run, run.end, run.verdict = row, {}, {}
        elif row.get("event") == "evaluation":
            evaluations[at] = row
        elif row.get("event") == "verdict":
            run.verdict = row
        elif row.get("event") == "end":
            run.end = row
        elif "event" not in row:
            steps[at] = row
    run.steps = [steps[i] for i in sorted(steps)]
    run.evaluations = [evaluations[i] for i in sorted(evaluations)]
    if not (run.run or run.steps):
        raise DataError(f"{shown(path, 400)}: no log of a run: no line of it is an iteration")
    return run


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("iter")) is not int or row["iter"] < 0:
        return None
    return row


def number(row: Row, key: str) -> float | None:
    """Return a finite number of a row; None for anything else that may be there."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None


def points(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """Return (iteration, value) of all rows that have the value."""
    return [(float(r["iter"]), v) for r in rows if (v := number(r, key)) is not None]
