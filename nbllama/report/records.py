"""A log of JSON lines, as what happened: of a run that was killed and continued, what counts."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

from nbllama.errors import DataError, shown
from nbllama.system.regular import read_whole

Row = dict[str, Any]

MAX_BYTES = 1 << 30
"""Largest log that is read, a million iterations and more."""
_MAX_ITERATION = 1 << 53
_OBJECTS = ("data", "forecast", "options")


@dataclass
class Run:
    """Rows as in the log.

    `run`: the last start; `steps`, `evaluations`: one for each iteration, in order, up to what was
    done last; `end`: how the last start ended, {} while it continues.
    """

    run: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    end: Row = field(default_factory=dict)


def read_log(path: str) -> Run:
    """Read the run in a log. Lines that are cut, as a kill leaves them, are skipped.

    Raises `DataError` for a file that cannot be read or holds no iteration and no start of a run.
    """
    try:
        content = read_whole(path, MAX_BYTES)
    except OSError as e:
        raise DataError(f"{shown(path, 400)}: {e.strerror or e}") from e
    except ValueError as e:
        raise DataError(f"{shown(path, 400)}: {e}") from e
    lines = (line.decode("utf-8", "replace") for line in io.BytesIO(content))
    rows = [row for line in lines if (row := _row(line)) is not None]
    run = Run()
    steps: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    for row in rows:
        at = row["iter"]
        if row.get("event") == "run":
            # It goes on after iteration `at`: what another one did later was lost.
            steps = {i: r for i, r in steps.items() if i <= at}
            evaluations = {i: r for i, r in evaluations.items() if i <= at}
            run.run, run.end = row, {}
        elif row.get("event") == "evaluation":
            evaluations[at] = row
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
    if not isinstance(row, dict) or type(at := row.get("iter")) is not int:
        return None
    if not 0 <= at < _MAX_ITERATION:
        return None
    for key in _OBJECTS:
        if not isinstance(row.get(key, {}), dict):
            del row[key]
    samples = row.get("samples", [])
    row["samples"] = [x for x in samples if isinstance(x, dict)] if _is_list(samples) else []
    data = row.get("data", {})
    if "lengths" in data:
        rows = data["lengths"] if _is_list(data["lengths"]) else []
        data["lengths"] = [[text(x[0]), int(x[1])] for x in rows if _is_bar(x)]
    return row


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_bar(x: Any) -> bool:
    """Whether an entry of a histogram is a name with a count."""
    return _is_list(x) and len(x) == 2 and type(x[1]) is int and 0 <= x[1] < _MAX_ITERATION


def text(value: Any) -> str:
    """Whatever stands in a log, as text."""
    try:
        return str(value)
    except (RecursionError, ValueError):  # nested deeply, or a number of thousands of digits
        return "\N{HORIZONTAL ELLIPSIS}"


def number(row: Row, key: str) -> float | None:
    """Return a finite number of a row, 0 for one that is almost 0; None for anything else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) < 1e300:
        return None
    return float(value) if abs(value) > 1e-300 else 0.0


def points(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """Return (iteration, value) of all rows that have the value."""
    return [(float(r["iter"]), v) for r in rows if (v := number(r, key)) is not None]
