"""The means of an objective's recorded numbers, at the start and at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol


class Recording(Protocol):
    """An objective that appends the numbers of each iteration to `history`."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """The recorded numbers by name, one mapping per iteration."""


class FirstAndLast:
    """The means over the first and the last tenth of a run, each at least one iteration long."""

    objective: Recording

    @property
    def first(self) -> dict[str, float]:
        """Return the means over the first tenth."""
        return means(self.objective.history[: self._tenth])

    @property
    def last(self) -> dict[str, float]:
        """Return the means over the last tenth."""
        return means(self.objective.history[-self._tenth :])

    @property
    def _tenth(self) -> int:
        return max(1, len(self.objective.history) // 10)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the rows that contain it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}
