"""`--group-prompts`: samples with the same prefix are adjacent, each once per epoch."""

from __future__ import annotations

import numpy as np

from nbllama.data import Position, SeedFeed
from nbllama.data.grouped import GroupedOrder
from nbllama.data.shared import share
from tests.data.test_shared import samples

PROMPTS = [[k, *range(10, 30)] for k in range(5)]
ROWS = [[*PROMPTS[i % 5], 40 + i] for i in range(42)]  # neighbours have different prompts


def test_every_sample_once_and_groups_that_differ_by_epoch() -> None:
    data = samples(ROWS, 99)
    orders = [GroupedOrder(data, 7, 4).epoch(epoch).order for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(42))
        # groups of four neighbours in the circle of sorted samples, which has five prompts
        apart = [len({i % 5 for i in order[at : at + 4]}) for at in range(0, 40, 4)]
        assert max(apart) <= 2 and apart.count(1) >= 4
    assert not np.array_equal(orders[0], orders[1])
    cuts = [{frozenset(order[at : at + 4].tolist()) for at in range(0, 40, 4)} for order in orders]
    assert cuts[0] != cuts[1] or cuts[1] != cuts[2]
    assert np.array_equal(orders[2], GroupedOrder(data, 7, 4).epoch(2).order)
    assert not np.array_equal(orders[0], GroupedOrder(data, 8, 4).epoch(0).order)


def test_fewer_tokens_are_computed() -> None:
    data = samples(ROWS, 99)
    counts = []
    for order in (None, GroupedOrder(data, 7, 4)):
        feed, place, n = SeedFeed(data, 7, order), Position(), 0
        while place.epoch < 1:
            (batch,), place, _ = feed.take(place, 4, 1)
            n += share(batch).n_tokens
        counts.append(n)
    assert counts[1] < 0.75 * counts[0]


def test_fewer_samples_than_a_batch() -> None:
    order = GroupedOrder(samples(ROWS[:3], 99), 1, 8).epoch(0)
    assert sorted(order.order) == [0, 1, 2]
