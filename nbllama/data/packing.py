"""Packing: a batch holds as many whole samples as fit, not so many samples.

Nothing is padded in any case, since a batch is a stream in which attention and positions are cut
between samples. What packing changes is how samples are dealt out: batches have about the same
number of tokens, so that each takes about the same time and memory, and short samples come in
batches that are large enough for the matrix products.

Samples stay in the epoch's order; a batch ends before the first one that does not fit. So the place
in the data is still (epoch, next sample), and room that is left over costs nothing.

Where samples share their beginnings (`nbllama.data.shared`), what counts are the tokens that are
computed. A batch then ends too where its samples have as many trained targets as there is room, or
`MOST_TOKENS` times as many tokens, so that its memory has a bound. The rule stays that with which a
run began, since it decides which samples come together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.order import Shuffled
from nbllama.data.samples import Samples
from nbllama.data.shared import FEWEST_ROWS, Beginnings, most_rows

MOST_TOKENS = 8
SEEN = 16  # batches whose mean is `per_batch`


class Packed:
    """The `Dataset` of `samples` in which n rows stand for n * n_ctx tokens.

    `shared`: a token that several samples of a batch share is counted once.
    """

    def __init__(self, samples: Samples, shared: bool = False) -> None:
        self.samples, self.shared = samples, shared
        self.kind, self.format = samples.kind, samples.format
        self.n_samples, self.n_ctx = samples.n_samples, samples.n_ctx
        self.fingerprint, self.notes = samples.fingerprint, samples.notes
        self.n_tokens, self.n_trained = samples.n_tokens, samples.n_trained
        self._lengths = samples.lengths()

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths of the samples, which are those of the data set behind this one."""
        return self._lengths

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the samples of these numbers, in this order."""
        return self.samples.batch(indices)

    def take(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> tuple[Batch, int]:
        """Return the samples from place `first` on that together fit in `n_rows` rows."""
        n = self.used(order, first, n_rows, wraps=wraps)
        return self.batch(order.order[first : first + n].tolist()), n

    def used(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return how many samples fit; `ValueError` for `wraps`: the old tool packed nothing."""
        if wraps:
            raise ValueError("packed batches do not wrap around")
        room = n_rows * self.n_ctx
        if self.shared:
            return self._used_shared(order.order, first, room)
        # Every sample has a token, so no more than `room` of them fit.
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
        """Return bounds of the computed tokens and of the samples' tokens of any shared batch."""
        room, tokens = n_rows * self.n_ctx, self._lengths[0]
        most = min(MOST_TOKENS * room, int(tokens.sum()))
        n = self.n_samples
        rows = min(room, most_rows([self.samples.inputs(i) for i in range(n)], n))
        # with fewer rows a batch is computed as it is
        short = int(tokens[tokens < FEWEST_ROWS].sum())
        return max(rows, min(short, most)), most

    def largest(self, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return bounds of any batch: full rows, of the samples with the greatest trained share."""
        room = n_rows * self.n_ctx
        tokens, trained = self._lengths
        # No choice of samples has more trained targets than those with the greatest share of them,
        # the last one only in part.
        by_share = np.argsort(-trained / tokens, kind="stable")
        filled = np.cumsum(tokens[by_share])
        whole = int(np.searchsorted(filled, room, side="right"))
        most = int(trained[by_share[: whole + 1]].sum())
        if self.shared:
            most = int(trained.sum())
        return min(room, int(tokens.sum())), min(room, most)

    def per_batch(self, n_rows: int) -> float:
        """Return the average by the samples' mean length, less half a sample that does not fit."""
        if self.shared:
            order, sizes = np.arange(self.n_samples), [0]
            while len(sizes) <= SEEN and sum(sizes) < len(order):
                sizes.append(self._used_shared(order, sum(sizes), n_rows * self.n_ctx))
            return sum(sizes) / (len(sizes) - 1)
        mean = float(self._lengths[0].mean())
        return max(1.0, n_rows * self.n_ctx / mean - 0.5)
