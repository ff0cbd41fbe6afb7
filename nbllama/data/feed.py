"""The source of batches for the trainer.

Given a position, a feed returns the batches of the iteration that starts there, and the position
after them.

nbllama normally uses `SeedFeed`: the order of an epoch depends only on (seed, epoch), every sample
occurs once per epoch, and no epoch ends in the middle of an iteration. `OldFeed` reproduces
llama.cpp's `common/train.cpp` (`train_opt_callback`, `shuffle_samples`): a single `std::mt19937`
generates the orders of all epochs, and batches are always full. At the end of an epoch, a batch is
filled with samples from the start of the same epoch's order.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from nbllama.data.batch import Batch, Dataset
from nbllama.data.mt19937 import MOST, MT19937
from nbllama.data.order import Order, Position, Shuffled, check_position


class Taken(NamedTuple):
    """The micro-batches of one iteration, the position after them, and the number of samples.

    There can be more samples than rows, because a row can continue with the next sample.
    """

    batches: list[Batch]
    after: Position
    n_samples: int


class Feed(Protocol):
    """A source of batches; `take` depends only on its arguments, not on earlier calls.

    If `wraps` is true, batches are always full. The methods raise `DataError` for a position
    outside the data.
    """

    wraps: bool

    def take(self, position: Position, batch: int, grad_acc: int) -> Taken:
        """Return `grad_acc` micro-batches of `batch` rows, starting at `position`."""
        ...

    def after(self, position: Position, batch: int, grad_acc: int) -> Position:
        """Return the position after the batches of `take`, without building them."""
        ...

    def rng_state(self, position: Position) -> str:
        """Return the generator state that determines the epoch's order, or "" if there is none."""
        ...


class SeedFeed:
    """The `Feed` for a seed; the last iteration of an epoch can have fewer or shorter batches.

    If `order` is given, it is used instead of the default `Order` for the seed.
    """

    wraps = False

    def __init__(self, dataset: Dataset, seed: int, order: Order | None = None) -> None:
        self._dataset = dataset
        self._order = Order(dataset.n_samples, seed) if order is None else order

    def take(self, position: Position, batch: int, grad_acc: int) -> Taken:
        """Return `grad_acc` micro-batches from `position` on, or fewer at the end of the epoch."""
        n = self._dataset.n_samples
        check_position(position, n)
        epoch, first = position
        order, at = self._order.epoch(epoch), first
        batches: list[Batch] = []
        while len(batches) < grad_acc and at < n:
            rows, used = self._dataset.take(order, at, batch, wraps=False)
            batches.append(rows)
            at += used
        return Taken(batches, _place(epoch, at, n), at - first)

    def after(self, position: Position, batch: int, grad_acc: int) -> Position:
        """Return the position after the iteration, in this epoch or at the start of the next."""
        n = self._dataset.n_samples
        check_position(position, n)
        epoch, at = position
        order = self._order.epoch(epoch)
        for _ in range(grad_acc):
            if at < n:
                at += self._dataset.used(order, at, batch, wraps=False)
        return _place(epoch, at, n)

    def rng_state(self, position: Position) -> str:
        """Return "", because orders depend only on the seed."""
        return ""


def _place(epoch: int, at: int, n_samples: int) -> Position:
    return Position(epoch + 1) if at == n_samples else Position(epoch, at)


class OldFeed:
    """The `Feed` of the old tool, starting with a generator state at the start of an epoch.

    `state` is the generator state as text (see `MT19937`). Epochs before `epoch` are not available.
    """

    wraps = True

    def __init__(self, dataset: Dataset, state: str, epoch: int = 0) -> None:
        """Start at the beginning of `epoch`. Raises `DataError` if `state` is invalid."""
        self._dataset = dataset
        self._states = {epoch: MT19937.parse(state).text()}
        self._drawn: tuple[int, Shuffled] | None = None

    def epoch(self, epoch: int) -> Shuffled:
        """Return the order of an epoch.

        As in the old tool, `unit` contains random numbers divided by one less than their maximum,
        so a number can exceed 1.
        """
        while epoch not in self._states:
            self._draw(max(self._states))
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self._draw(epoch)
        return self._drawn[1]

    def _draw(self, epoch: int) -> Shuffled:
        rng, n = MT19937.parse(self._states[epoch]), self._dataset.n_samples
        order = np.argsort(rng.draw(n), kind="stable").astype(np.int64, copy=False)
        unit = rng.draw(n) / float(MOST - 1)
        self._states[epoch + 1] = rng.text()
        return Shuffled(order, unit)

    def take(self, position: Position, batch: int, grad_acc: int) -> Taken:
        """Return `grad_acc` full micro-batches, wrapping around within the order of the epoch."""
        n = self._dataset.n_samples
        check_position(position, n)
        epoch, at = position
        batches, in_all = [], 0
        for _ in range(grad_acc):
            rows, used = self._dataset.take(self.epoch(epoch), at, batch, wraps=True)
            batches.append(rows)
            in_all += used
            at += used
            if at >= n:
                # The next epoch begins at 0, because rows beyond the end came from the start of
                # this epoch's order.
                epoch, at = epoch + 1, 0
        return Taken(batches, Position(epoch, at), in_all)

    def after(self, position: Position, batch: int, grad_acc: int) -> Position:
        """Return the position after the iteration; the batches must be built to determine it."""
        return self.take(position, batch, grad_acc).after

    def rng_state(self, position: Position) -> str:
        """Return the generator state from which the order of the epoch was drawn."""
        self.epoch(position.epoch)
        return self._states[position.epoch]


def iterations(feed: Feed, position: Position, *, epochs: int, batch: int, grad_acc: int) -> int:
    """Count the iterations in `epochs` epochs by stepping through them from `position`."""
    end, count = position.epoch + epochs, 0
    while position.epoch < end:
        position = feed.after(position, batch, grad_acc)
        count += 1
    return count
