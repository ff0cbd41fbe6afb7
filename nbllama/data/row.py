"""One sample as token ids, with what of them is trained."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_NONE = np.zeros(0, np.int64)


class Encoded(NamedTuple):
    """One sample as token ids: ids int32 [n], trained bool [n] (part of an answer)."""

    ids: np.ndarray
    trained: np.ndarray


class Row(NamedTuple):
    """One sample: its ids, which are trained, and which characters of `text` each is.

    int32, bool, and int64 and int64 [n] for a token's first character and the one after its last.
    Places and text may be left out.
    """

    ids: np.ndarray
    trained: np.ndarray
    starts: np.ndarray = _NONE
    ends: np.ndarray = _NONE
    text: str = ""

    def characters(self) -> list[tuple[int, int]]:
        """Return the trained characters: (start, end) of each unbroken stretch of tokens."""
        edges = np.flatnonzero(np.diff(self.trained, prepend=False, append=False)).reshape(-1, 2)
        n = len(self.text)
        return [(int(self.starts[a]), min(int(self.ends[b - 1]), n)) for a, b in edges]

    def n_useful(self) -> int:
        """How many ids there are up to the last trained target; 0 if there is no trained target."""
        if len(self.trained) > 1 and self.trained[-1]:
            return len(self.trained)
        # The first id is no target: nothing comes before it.
        targets = np.flatnonzero(self.trained[1:]) + 1
        return int(targets[-1]) + 1 if len(targets) else 0

    def first(self, n: int) -> Row:
        """Return the first `n` ids, and the text of them."""
        if n >= len(self.ids):
            return self
        ids, trained, starts, ends = (part[:n] for part in self[:4])
        return Row(ids, trained, starts, ends, self.text[: int(ends[-1])] if len(ends) else "")
