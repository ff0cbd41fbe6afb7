"""`--group-prompts`: an order in which samples with the same beginning share a batch.

The samples are sorted by their tokens, so that similar samples are neighbours, and arranged in a
circle. An epoch starts at a random position in the circle, splits it into groups of `batch`
samples, and shuffles the groups; any leftover samples come last. Each epoch still contains every
sample once, the group boundaries vary between epochs, and the order is a pure function of the data,
seed, epoch and batch size.
"""

from __future__ import annotations

import numpy as np

from nbllama.data.order import Order, Shuffled
from nbllama.data.samples import Samples
from nbllama.data.shared import sort_key


class GroupedOrder(Order):
    """The order of each epoch, in which groups of `batch` samples have similar beginnings."""

    def __init__(self, samples: Samples, seed: int, batch: int) -> None:
        super().__init__(samples.n_samples, seed)
        numbers = sorted(range(self.n_samples), key=lambda i: sort_key(samples.inputs(i)))
        self._sorted = np.array(numbers, np.int64)
        self._batch = batch

    def epoch(self, epoch: int) -> Shuffled:
        """Return the order of an epoch."""
        drawn = super().epoch(epoch)
        circle = np.roll(self._sorted, -int(drawn.order[0]))
        whole = self.n_samples // self._batch
        groups = circle[: whole * self._batch].reshape(whole, self._batch)
        turns = np.argsort(drawn.unit[:whole], kind="stable")
        order = np.concatenate([groups[turns].reshape(-1), circle[whole * self._batch :]])
        return Shuffled(order, drawn.unit)
