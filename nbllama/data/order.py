"""The order of the samples in an epoch, which depends only on the seed and the epoch number.

The permutation for an epoch sorts the samples by random 64-bit numbers from numpy's Philox 4x64,
keyed by (seed, epoch) (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). numpy's
compatibility policy guarantees the raw stream of a bit generator but not `Generator.permutation`,
so this order stays the same after a numpy upgrade.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.errors import DataError

_KEY_LIMIT = 1 << 64


class Position(NamedTuple):
    """The number of completed epochs, and of completed samples in the current epoch."""

    epoch: int = 0
    next_sample: int = 0


class Shuffled(NamedTuple):
    """The sample order of an epoch, int64 [n], and a random number per position, float64 [n].

    The numbers (`unit`) are in [0, 1] and determine the random offsets of the samples.
    """

    order: np.ndarray
    unit: np.ndarray


def _draws(n: int, seed: int, epoch: int) -> np.ndarray:
    if not (0 <= seed < _KEY_LIMIT and 0 <= epoch < _KEY_LIMIT):
        raise ValueError(f"seed {seed} and epoch {epoch} must be in 0..2^64-1")
    if n < 1:
        raise ValueError("an order needs at least one sample")
    return np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(n)


def permutation(n_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, a permutation of 0 to n_samples - 1, as int64 [n_samples].

    Raises `ValueError` if seed or epoch is outside 0 .. 2^64 - 1 or n_samples < 1.
    """
    draws = _draws(n_samples, seed, epoch)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def shuffled(n_samples: int, seed: int, epoch: int) -> Shuffled:
    """Return the permutation for an epoch, and a number in [0, 1) for each position."""
    tail = _draws(2 * n_samples, seed, epoch)[n_samples:]
    return Shuffled(permutation(n_samples, seed, epoch), (tail >> 11) * 2.0**-53)


def check_position(position: Position, n_samples: int) -> None:
    """Raise `DataError` if a position is outside a data set of `n_samples` samples."""
    epoch, first = position
    if not (0 <= epoch < _KEY_LIMIT and 0 <= first < n_samples):
        raise DataError(
            f"the position (epoch {epoch}, sample {first}) is outside the data, which has "
            f"{n_samples} samples; did the file change?"
        )


class Order:
    """The sample order of each epoch for a given seed; the most recent order is cached."""

    def __init__(self, n_samples: int, seed: int) -> None:
        self.n_samples = n_samples
        self.seed = seed
        self._epoch = 0
        self._shuffled = shuffled(n_samples, seed, 0)

    def epoch(self, epoch: int) -> Shuffled:
        """Return the order of an epoch."""
        if epoch != self._epoch:
            self._shuffled = shuffled(self.n_samples, self.seed, epoch)
            self._epoch = epoch
        return self._shuffled
