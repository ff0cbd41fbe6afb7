"""Packing: each batch contains as many whole samples as fit, not a fixed number of samples.

Even without packing, nothing is padded, because a batch is a stream in which attention and
positions restart with each sample. Packing changes how samples are grouped. All batches contain
about the same number of tokens and therefore take about the same time and memory, and batches of
short samples are large enough for efficient matrix products.

Samples stay in the order of the epoch. A batch ends before the first sample that does not fit. The
position in the data is therefore still (epoch, next sample), and unused room costs nothing.

If samples share beginnings (`nbllama.data.shared`), only computed tokens count. To limit memory,
such a batch also ends before the number of trained targets exceeds the room, or the number of all
tokens exceeds `MOST_TOKENS` times the room. A resumed run must count tokens in the same way as
before, because the count determines which samples form a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.order import Shuffled
from nbllama.data.samples import Samples
from nbllama.data.shared import FEWEST_ROWS, Beginnings, most_rows

MOST_TOKENS = 8
SEEN = 16  # number of batches over which `per_batch` averages


class Packed:
    """A `Dataset` of `samples` in which a batch of n rows has room for n * n_ctx tokens.

    With `shared`, a token that several samples in a batch share is counted once.
    """

    def __init__(self, samples: Samples, shared: bool = False) -> None:
        self.samples, self.shared = samples, shared
        self.kind, self.format = samples.kind, samples.format
        self.n_samples, self.n_ctx = samples.n_samples, samples.n_ctx
        self.fingerprint, self.notes = samples.fingerprint, samples.notes
        self.n_tokens, self.n_trained = samples.n_tokens, samples.n_trained
        self._lengths = samples.lengths()

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths of the samples, as in the underlying data set."""
        return self._lengths

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return a batch of the samples with these indices, in order."""
        return self.samples.batch(indices)

    def take(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> tuple[Batch, int]:
        """Return as many samples as fit in `n_rows` rows, starting at position `first`."""
        n = self.used(order, first, n_rows, wraps=wraps)
        return self.batch(order.order[first : first + n].tolist()), n

    def used(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return how many samples fit.

        Raises `ValueError` if `wraps` is set, because only the old tool's order wraps around.
        """
        if wraps:
            raise ValueError("packed batches do not wrap around")
        room = n_rows * self.n_ctx
        if self.shared:
            return self._used_shared(order.order, first, room)
        # Every sample has at least one token, so at most `room` samples fit.
        sizes = self._lengths[0][order.order[first : first + room]]
        return int(np.searchsorted(np.cumsum(sizes), room, side="right"))

    def _used_shared(self, order: np.ndarray, first: int, room: int) -> int:
        seen, rows, tokens, trained = Beginnings(), 0, 0, 0
        for n, i in enumerate(order[first:].tolist()):
            _, same = seen.add(self.samples.inputs(i))
            length = int(self._lengths[0][i])
            rows, tokens = rows + length - same, tokens + length
            trained += int(self._lengths[1][i])
            if rows > room or trained > room or tokens > MOST_TOKENS * room:
                return n
        return len(order) - first

    def largest_shared(self, n_rows: int) -> tuple[int, int]:
        """Return upper bounds on the computed tokens and on all tokens of a shared batch."""
        room, tokens = n_rows * self.n_ctx, self._lengths[0]
        most = min(MOST_TOKENS * room, int(tokens.sum()))
        n = self.n_samples
        rows = min(room, most_rows([self.samples.inputs(i) for i in range(n)], n))
        # batches with fewer rows are computed without sharing
        short = int(tokens[tokens < FEWEST_ROWS].sum())
        return max(rows, min(short, most)), most

    def largest(self, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return upper bounds on the numbers of tokens and of trained targets in a batch."""
        room = n_rows * self.n_ctx
        tokens, trained = self._lengths
        # Filling the room in descending order of the trained share gives the most trained targets,
        # counting part of the last sample.
        by_share = np.argsort(-trained / tokens, kind="stable")
        filled = np.cumsum(tokens[by_share])
        whole = int(np.searchsorted(filled, room, side="right"))
        most = int(trained[by_share[: whole + 1]].sum())
        if self.shared:
            most = int(trained.sum())
        return min(room, int(tokens.sum())), min(room, most)

    def per_batch(self, n_rows: int) -> float:
        """Estimate the mean number of samples per batch.

        Without sharing, the estimate is the room divided by the mean length, minus half a sample
        for the unused room.
        """
        if self.shared:
            order, sizes = np.arange(self.n_samples), [0]
            while len(sizes) <= SEEN and sum(sizes) < len(order):
                sizes.append(self._used_shared(order, sum(sizes), n_rows * self.n_ctx))
            return sum(sizes) / (len(sizes) - 1)
        mean = float(self._lengths[0].mean())
        return max(1.0, n_rows * self.n_ctx / mean - 0.5)
