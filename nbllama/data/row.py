"""A sample as token ids, with a mask of the trained ids."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_NONE = np.zeros(0, np.int64)


class Encoded(NamedTuple):
    """A sample: token ids, int32 [n], and a mask of the ids to train on, bool [n]."""

    ids: np.ndarray
    trained: np.ndarray


class Row(NamedTuple):
    """A sample: its ids, a mask of the trained ids, and the part of `text` that each id covers.

    `ids` is int32 [n], and `trained` is bool [n]. Token i covers `text[starts[i]:ends[i]]`, where
    `starts` and `ends` are int64 [n]. `starts`, `ends` and `text` are optional.
    """

    ids: np.ndarray
    trained: np.ndarray
    starts: np.ndarray = _NONE
    ends: np.ndarray = _NONE
    text: str = ""

    def characters(self) -> list[tuple[int, int]]:
        """Return the trained characters, as (start, end) for each contiguous range of tokens."""
        edges = np.flatnonzero(np.diff(self.trained, prepend=False, append=False)).reshape(-1, 2)
        n = len(self.text)
        return [(int(self.starts[a]), min(int(self.ends[b - 1]), n)) for a, b in edges]

    def n_useful(self) -> int:
        """Return the number of ids up to the last target to train on, or 0 if there is none."""
        if len(self.trained) > 1 and self.trained[-1]:
            return len(self.trained)
        # The first id is not a target, because nothing precedes it.
        targets = np.flatnonzero(self.trained[1:]) + 1
        return int(targets[-1]) + 1 if len(targets) else 0

    def first(self, n: int) -> Row:
        """Return the first `n` ids and their text."""
        if n >= len(self.ids):
            return self
        ids, trained, starts, ends = (part[:n] for part in self[:4])
        return Row(ids, trained, starts, ends, self.text[: int(ends[-1])] if len(ends) else "")
