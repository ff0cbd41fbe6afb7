"""Penalties that make recent tokens less likely."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np

from nbllama.generation.sampling.filters import Candidates


class Penalties:
    """Penalties for tokens that occur in the text.

    The logit l of a token that occurs n > 0 times among the last `last_n` tokens becomes

        l' = (l / repeat  if l > 0 else  l * repeat) - n * frequency - presence

    Source of the `repeat` penalty: Keskar et al., "CTRL" (2019).
    """

    def __init__(self, last_n: int, repeat: float, frequency: float, presence: float) -> None:
        self.on = last_n > 0 and (repeat, frequency, presence) != (1, 0, 0)
        self._last: deque[int] = deque(maxlen=max(last_n, 0))
        self._repeat, self._frequency = np.float32(repeat), np.float32(frequency)
        self._presence = np.float32(presence)

    def accept(self, token: int) -> None:
        """Add a token to the recent tokens."""
        self._last.append(token)

    def reset(self) -> None:
        """Forget the recent tokens."""
        self._last.clear()

    def apply(self, c: Candidates) -> Candidates:
        """Apply the penalties to c, which must contain the whole vocabulary in id order."""
        if not self.on or not self._last:
            return c
        counts = Counter(self._last)
        ids = np.fromiter(counts.keys(), np.int64)
        n = np.fromiter(counts.values(), np.float32)
        logits = c.logits.copy()
        old = logits[ids]
        new = np.where(old <= 0, old * self._repeat, old / self._repeat)
        logits[ids] = new - (n * self._frequency + self._presence)
        return c._replace(logits=logits, ordered=False)
