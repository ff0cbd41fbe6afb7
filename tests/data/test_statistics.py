"""Statistics of a data set, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.data import Packed, Position, SeedFeed
from nbllama.data.order import shuffled
from nbllama.data.statistics import BINS, statistics, utilisation
from tests.data.test_packing import samples


def test_statistics() -> None:
    data = samples([4, 10, 6, 4, 31], 40)
    s = statistics(data)
    assert (s.n_samples, s.tokens, s.shortest, s.longest) == (5, 55, 4, 31)
    assert (s.mean, s.median) == (11.0, 6.0)
    assert s.trained == sum(data.n_trained(i) for i in range(5))
    assert s.trained_share == s.trained / 55
    # 4 .. 31 in at most ten steps of 3: 4 5 6 | 7 8 9 | 10 11 12 | ... | 31 32 33
    assert s.edges == [4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34]
    assert s.histogram == [3, 0, 1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("sizes", [[7], [7, 7, 7], [1, 2], list(range(1, 12)), [1, 500]])
def test_every_sample_is_in_the_histogram(sizes: list[int]) -> None:
    s = statistics(samples(sizes, 500))
    assert sum(s.histogram) == len(sizes) and len(s.histogram) <= BINS
    assert len(s.edges) == len(s.histogram) + 1
    for low, after, count in zip(s.edges, s.edges[1:], s.histogram, strict=False):
        assert count == sum(low <= n < after for n in sizes)


def test_utilisation() -> None:
    sizes = np.random.default_rng(0).integers(1, 17, 41).tolist()
    data = samples(sizes, 16)
    u = utilisation(data, 16, 4, seed=3)
    assert u.to_context == sum(sizes) / (16 * 41)
    order = shuffled(41, 3, 0).order
    rows = [[sizes[i] for i in order[at : at + 4]] for at in range(0, 41, 4)]
    assert u.to_longest == sum(sizes) / sum(len(r) * max(r) for r in rows)
    feed, position, batches = SeedFeed(Packed(data), 3), Position(), 0
    while position.epoch == 0:
        position, batches = feed.after(position, 4, 1), batches + 1
    assert u.packed == sum(sizes) / (batches * 64)
    assert u.to_context < u.to_longest < u.packed <= 1
