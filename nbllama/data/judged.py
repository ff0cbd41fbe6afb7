"""Judgements of the answers in preference data: whether each is good, and its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.data_file import DataFile
from nbllama.data.formats import Labelled, Pair
from nbllama.errors import DataError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

PAIRS, LABELLED = "preference", "labelled"


class Judged(NamedTuple):
    """The judgements of n answers: whether each is good, bool [n], and its weight, float64 [n].

    An answer is good if it is the chosen answer of a pair or is labelled true. The weight scales
    the loss.
    """

    good: np.ndarray
    weight: np.ndarray

    def part(self, numbers: np.ndarray) -> Judged:
        """Return the judgements of the answers with these indices."""
        return Judged(self.good[numbers], self.weight[numbers])

    def content(self) -> tuple[bytes, ...]:
        """Return all judgements as bytes, for a fingerprint."""
        return b"judged", self.good.tobytes(), self.weight.tobytes()


def judgements(data: DataFile, records: Sequence[int]) -> Judged | None:
    """Return the judgements of all samples in `data`; `records` maps samples to record numbers.

    A pair consists of two samples, the chosen one first. Returns None for data without judgements.
    Raises `DataError` if the data mix pairs, labelled answers and other records.
    """
    if data.format not in (PAIRS, LABELLED):
        if any(isinstance(s, Pair | Labelled) for _, s in data.samples):
            raise DataError(_mixed(data))
        return None
    wanted = Pair if data.format == PAIRS else Labelled
    if not all(isinstance(s, wanted) for _, s in data.samples):
        raise DataError(_mixed(data))
    good, weight = np.ones(len(records), bool), np.ones(len(records))
    for i, number in enumerate(records):
        sample = data.samples[number][1]
        assert isinstance(sample, Pair | Labelled)
        good[i] = i % 2 == 0 if isinstance(sample, Pair) else sample.good
        weight[i] = sample.weight
    return Judged(good, weight)


def _mixed(data: DataFile) -> str:
    first = type(data.samples[0][1])
    line = next(line for line, s in data.samples if type(s) is not first)
    reason = "preferences and other records cannot be mixed in one run"
    if first is Labelled:
        reason = "the first record has a label, so every record must have a label (true or false)"
    elif first is Pair:
        reason = "the first record is a pair, so every record must have chosen and rejected"
    return (
        f"{data.where(line)}: this record has a different format from the previous records: "
        f"{reason} "
        f"({shown(data.path)})"
    )
