"""Read a log of JSON lines, skipping rows that were superseded when a killed run was resumed."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, fields
from typing import Any

from nbllama.errors import DataError, shown
from nbllama.system.regular import read_whole

Row = dict[str, Any]

MAX_BYTES = 1 << 30
"""Size limit for a log in bytes, enough for more than a million iterations."""


@dataclass
class Run:
    """Rows of a log in the order of their iterations; if a row is repeated, the last one is kept.

    `run` is the row that was written when the run last started. `steps` and `evaluations` contain
    at most one row per iteration. `norms`, `texts` (the losses of tokens) and `questions` are
    recorded only with `--live`. `verdict` is the row with the verdict on the run, and `end` is
    the row that says how the run last ended; both are {} while the run is in progress.
    """

    run: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    end: Row = field(default_factory=dict)
    norms: list[Row] = field(default_factory=list)
    texts: list[Row] = field(default_factory=list)
    questions: list[Row] = field(default_factory=list)
    verdict: Row = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Add a row; rows with unknown events are ignored."""
        event = row.get("event", "step")
        if event == "run":
            # The run was resumed after iteration `iter`; later rows of the earlier run are
            # superseded.
            for rows in self._lists().values():
                while rows and rows[-1]["iter"] > row["iter"]:
                    rows.pop()
            self.run, self.end, self.verdict = row, {}, {}
        elif event == "end":
            self.end = row
        elif event == "verdict":
            self.verdict = row
        elif event in (lists := self._lists()):
            _put(lists[event], row, several=event in ("tokens", "question"))

    def copy(self) -> Run:
        """Copy the lists, but not the rows in them."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        copies: dict[str, Any] = {
            k: list(v) if isinstance(v, list) else v for k, v in parts.items()
        }
        return Run(**copies)

    def _lists(self) -> dict[str, list[Row]]:
        return {
            "step": self.steps, "evaluation": self.evaluations, "norms": self.norms,
            "tokens": self.texts, "question": self.questions,
        }  # fmt: skip


def _put(rows: list[Row], row: Row, *, several: bool) -> None:
    """Insert a row in iteration order; unless `several`, replace a row for the same iteration."""
    at = len(rows)
    while at and rows[at - 1]["iter"] > row["iter"]:
        at -= 1
    if at and rows[at - 1]["iter"] == row["iter"] and not several:
        rows[at - 1] = row
    else:
        rows.insert(at, row)


def read_log(path: str) -> Run:
    """Read the run from a log; lines that were truncated when a run was killed are skipped.

    Raises `DataError` for a file that cannot be read, or that contains neither an iteration nor the
    start of a run.
    """
    run = Run()
    try:
        content = read_whole(path, MAX_BYTES)
    except OSError as e:
        raise DataError(f"{shown(path, 400)}: {e.strerror or e}") from e
    except ValueError as e:
        raise DataError(f"{shown(path, 400)}: {e}") from e
    for line in io.BytesIO(content):
        if (row := _row(line.decode("utf-8", "replace"))) is not None:
            run.add(row)
    if not (run.run or run.steps):
        raise DataError(
            f"{shown(path, 400)} is not the log of a run; none of its lines records an iteration"
        )
    return run


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("iter")) is not int:
        return None
    if not 0 <= row["iter"] < 1 << 53:
        return None
    return row if isinstance(row.get("event", "step"), str) else None


def text(value: Any) -> str:
    """Return any value in a log as text."""
    try:
        return str(value)
    except (RecursionError, ValueError):  # deep nesting, or a number with thousands of digits
        return "\N{HORIZONTAL ELLIPSIS}"


def number(row: Row, key: str) -> float | None:
    """Return the number at `key`, rounding tiny numbers to 0; None if it is not a finite number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) < 1e300:
        return None
    return float(value) if abs(value) > 1e-300 else 0.0


def points(rows: list[Row], key: str) -> list[tuple[float, float]]:
    """Return (iteration, value) for each row that has a number at `key`."""
    return [(float(r["iter"]), v) for r in rows if (v := number(r, key)) is not None]
