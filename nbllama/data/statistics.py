"""Statistics of a data set: lengths, share of trained targets, and how full the rows would be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.data.batch import Dataset
from nbllama.data.order import shuffled

BINS = 10


class Statistics(NamedTuple):
    """Statistics of a data set; lengths are in input tokens per sample.

    `trained` is the number of targets in the loss. `histogram[i]` is the number of samples with
    lengths from `edges[i]` up to, but not including, `edges[i + 1]`.
    """

    n_samples: int
    tokens: int
    trained: int
    shortest: int
    median: float
    mean: float
    longest: int
    edges: list[int]
    histogram: list[int]

    @property
    def trained_share(self) -> float:
        """The number of trained targets divided by the number of tokens."""
        return self.trained / self.tokens


class Utilisation(NamedTuple):
    """The ratio of sample tokens to batch tokens in an epoch, for three kinds of batches.

    `to_context` and `to_longest` are for one sample per row, padded to n_ctx or to the longest
    sample in the batch. `packed` is for batches formed by `--packing`, relative to the maximum
    number of tokens in a batch (the unused part is not computed). nbllama itself never processes
    more tokens than the samples contain.
    """

    to_context: float
    to_longest: float
    packed: float


def described(data: Dataset) -> str:
    """Return a description of the data: "plain text", or the format of the records."""
    return "plain text" if data.kind == "raw" else f"records, format {getattr(data, 'format', '')}"


def statistics(data: Dataset) -> Statistics:
    """Compute the statistics of all samples of a data set."""
    tokens, trained = data.lengths()
    low, high = int(tokens.min()), int(tokens.max())
    width = max(1, -(-(high - low + 1) // BINS))
    edges = list(range(low, high + width + 1, width))
    counts, _ = np.histogram(tokens, np.array(edges) - 0.5)
    return Statistics(
        data.n_samples,
        int(tokens.sum()),
        int(trained.sum()),
        low,
        float(np.median(tokens)),
        float(tokens.mean()),
        high,
        edges,
        counts.tolist(),
    )


def utilisation(data: Dataset, n_ctx: int, batch: int, seed: int = 0) -> Utilisation:
    """Compute the utilisation for the first epoch of a run with this `seed`.

    Batches contain `batch` samples or, with packing, at most `batch * n_ctx` tokens.
    """
    tokens = data.lengths()[0]
    n, total = len(tokens), int(tokens.sum())
    order = shuffled(n, seed, 0)
    by_place = tokens[order.order]
    firsts = range(0, n, batch)
    longest = sum(int(by_place[i : i + batch].max()) * len(by_place[i : i + batch]) for i in firsts)
    room, batches, at = batch * n_ctx, 0, 0
    ends = np.cumsum(by_place)
    while at < n:
        before = int(ends[at - 1]) if at else 0
        at = int(np.searchsorted(ends, before + room, side="right"))
        batches += 1
    return Utilisation(total / (n * n_ctx), total / longest, total / (batches * room))
