"""Choose samples that show the different kinds of records in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nbllama.data.kinds import Kind

_LONGER = 1.5  # show the longest sample if its length is at least this multiple of the median
_MOST = 20_000  # records to examine


class Choice(NamedTuple):
    """The index of a record to show, and the reason for showing it ("" if there is none)."""

    number: int
    why: str


def spread(lengths: np.ndarray, kind: Callable[[int], Kind], n: int) -> list[Choice]:
    """Choose up to `n` records: the first, the longest, and others of different kinds.

    `lengths` contains the length of each record, and `kind` returns the kind of a record. The
    result is in ascending order. If all records are alike, the first `n` are chosen, and no
    reasons are given.
    """
    n = min(n, len(lengths))
    if n < 1:
        return []
    why = {0: "the first"}
    longest = int(np.argmax(lengths))
    if lengths[longest] >= _LONGER * np.median(lengths):
        why[longest] = "the longest" if longest else "the first and the longest"
    kinds = [kind(i) for i in range(min(_MOST, len(lengths)))]
    shown = [kind(i) for i in why]
    for feature in range(len(Kind._fields)):
        known = {k[feature] for k in shown}
        for i, other in enumerate(kinds):
            if len(why) >= n:
                break
            if other[feature] and other[feature] not in known and i not in why:
                why[i] = other[feature]
                shown.append(other)
                known = {k[feature] for k in shown}
    if list(why) == [0] and why[0] == "the first":
        return [Choice(i, "") for i in range(n)]
    for i in range(len(lengths)):  # add the next records if there are too few kinds
        if len(why) >= n:
            break
        why.setdefault(i, "")
    return [Choice(i, why[i]) for i in sorted(why)[:n]]
