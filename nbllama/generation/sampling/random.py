"""Reproduce llama.cpp's random numbers (libstdc++) so that the same seed gives the same tokens."""

from __future__ import annotations

import numpy as np

from nbllama.data.mt19937 import MT19937


class Random:
    """The generator `std::mt19937`, with the distributions that llama.cpp uses."""

    def __init__(self, seed: int) -> None:
        self._numbers = MT19937.seeded(seed)

    def uniform(self) -> float:
        """Draw a number in [0, 1), as libstdc++'s `std::generate_canonical<double, 53>` does."""
        low, high = (int(x) for x in self._numbers.draw(2))
        return min((low + high * 2.0**32) / 2.0**64, 1.0 - 2.0**-53)

    def index(self, p: np.ndarray) -> int:
        """Draw an index as `std::discrete_distribution` does, with the weights p `[n]`.

        If there is only one weight, no number is drawn.
        """
        if len(p) < 2:
            return 0
        wide = p.astype(np.float64)
        up_to = np.cumsum(wide / np.cumsum(wide)[-1])
        up_to[-1] = 1.0
        return int(np.searchsorted(up_to, self.uniform()))
