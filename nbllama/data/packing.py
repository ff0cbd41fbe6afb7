"""Packing: a batch holds as many whole samples as fit, not so many samples.

Nothing is padded in any case, since a batch is a stream in which attention and positions are cut
between samples. What packing changes is how samples are dealt out: batches have about the same
number of tokens, so that each takes about the same time and memory, and short samples come in
batches that are large enough for the matrix products.

Samples stay in the epoch's order; a batch ends before the first one that does not fit. So the place
in the data is still (epoch, next sample), and room that is left over costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.order import Shuffled
from nbllama.data.samples import Samples


class Packed:
    """The `Dataset` of `samples` in which n rows stand for n * n_ctx tokens."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
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
        # Every sample has a token, so no more than `room` of them fit.
        sizes = self._lengths[0][order.order[first : first + room]]
        return int(np.searchsorted(np.cumsum(sizes), room, side="right"))

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
        return min(room, int(tokens.sum())), min(room, most)

    def per_batch(self, n_rows: int) -> float:
        """Return the average by the samples' mean length, less half a sample that does not fit."""
        mean = float(self._lengths[0].mean())
        return max(1.0, n_rows * self.n_ctx / mean - 0.5)
