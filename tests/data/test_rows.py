"""Rows of raw text and the two orders, compared with a plain version of the old procedure."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import MT19937, OldFeed, Position, RawText, Rules, SeedFeed
from nbllama.data.batch import Batch
from nbllama.data.cutters import Windows
from nbllama.data.feed import iterations
from nbllama.data.order import Shuffled
from nbllama.errors import DataError

BOS, EOS = 1, 2


def dataset(sizes: list[int], n_ctx: int, **rules: Any) -> RawText:
    """Sample i is the tokens 100 i + 10, 100 i + 11, ..."""
    tokens = [100 * i + 10 + j for i, size in enumerate(sizes) for j in range(size)]
    begins = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
    windows = Windows(begins, np.array(sizes, np.int64))
    return RawText(np.array(tokens, np.int32), windows, n_ctx, BOS, EOS, "", Rules(**rules))


def old_rows(
    data: RawText, order: list[int], offsets: list[int], first: int, n_rows: int
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """(inputs, targets) of each row, as in finetune-2024's batch assembly, token by token."""
    rules, count, used = data.rules, len(order), 0
    rows = []
    for _ in range(n_rows):
        idx = (first + used) % count
        used += 1
        offs = offsets[idx] if rules.sample_random_offsets else 0
        begin, size = (int(x[order[idx]]) for x in data.windows)
        inputs, targets = [BOS], []
        eos_done, bos_done = not rules.separate_with_eos, not rules.separate_with_bos
        for i in range(data.n_ctx):
            tok = EOS
            if offs >= size and rules.fill_with_next_samples:
                if not eos_done:
                    eos_done = True
                elif not bos_done:
                    bos_done, tok = True, BOS
                else:
                    eos_done, bos_done = not rules.separate_with_eos, not rules.separate_with_bos
                    offs, idx = 0, (first + used) % count
                    used += 1
                    begin, size = (int(x[order[idx]]) for x in data.windows)
            if offs < size:
                tok = int(data.tokens[begin + offs])
                offs += 1
            targets.append(tok)
            if i + 1 < data.n_ctx:
                inputs.append(tok)
        rows.append((inputs, targets))
    return rows, used


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    ends = batch.seq_offsets
    return [(batch.tokens[a:b].tolist(), batch.targets[a:b].tolist()) for a, b in pairwise(ends)]


SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any)
FLAGS = st.tuples(*[st.booleans()] * 4)


@given(SIZES, st.integers(1, 9), FLAGS, st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_batches_of_the_old_tool(
    sizes: list[int], n_ctx: int, flags: tuple[bool, ...], seed: int, n_rows: int
) -> None:
    fill, eos, bos, random = flags
    data = dataset(
        sizes, n_ctx, fill_with_next_samples=fill, separate_with_eos=eos, separate_with_bos=bos,
        sample_random_offsets=random, pad=True,
    )  # fmt: skip
    feed = OldFeed(data, MT19937.seeded(seed).text())
    rng, place, done = MT19937.seeded(seed), Position(), 0
    state = rng.text()
    n = len(sizes)
    order: list[int] = []
    offsets: list[int] = []
    for step in range(6):
        if step == 0 or place.next_sample == 0:
            state = rng.text()
            draws = rng.draw(n).tolist()
            order = [i for _, i in sorted((draw, i) for i, draw in enumerate(draws))]
            drawn = rng.draw(n).tolist()
            # An empty sample's size - 1 wraps around in C++: its offset is after its end anyway.
            offsets = [
                int((sizes[i] - 1) * (float(d) / float(2**32 - 2))) if sizes[i] else 10**9
                for i, d in zip(order, drawn, strict=True)
            ]
        wanted, used = old_rows(data, order, offsets, place.next_sample, n_rows)
        assert feed.rng_state(place) == state
        (batch,), after, taken = feed.take(place, n_rows, 1)
        assert rows_of(batch) == wanted
        assert taken == used
        at = place.next_sample + used
        assert after == (Position(place.epoch + 1) if at >= n else Position(place.epoch, at))
        place, done = after, done + used
    assert data.lengths()[0].tolist() == [n_ctx] * n


def test_old_orders_go_through_the_epochs() -> None:
    data = dataset([3] * 10, 3)
    feed = OldFeed(data, MT19937.seeded(3).text(), epoch=5)
    last = feed.take(Position(5, 8), 2, 1)
    assert last.after == Position(6)
    # Read earlier samples again, and start a feed from the state in a checkpoint.
    one = feed.take(Position(6, 4), 2, 2)
    other = OldFeed(data, feed.rng_state(Position(6)), epoch=6).take(Position(6, 4), 2, 2)
    again = feed.take(Position(5, 8), 2, 1)
    for a, b in ((one, other), (last, again)):
        assert a.after == b.after
        assert [x.tokens.tolist() for x in a.batches] == [x.tokens.tolist() for x in b.batches]
    assert not np.array_equal(feed.epoch(5).order, feed.epoch(6).order)


def test_an_old_batch_wraps_in_the_old_order_and_drops_what_goes_beyond() -> None:
    data = dataset([2] * 5, 2)
    feed = OldFeed(data, MT19937.seeded(1).text())
    order = feed.epoch(0).order.tolist()
    (batch,), after, used = feed.take(Position(0, 4), 3, 1)
    assert batch.targets[::2].tolist() == [100 * i + 10 for i in (order[4], order[0], order[1])]
    assert (after, used) == (Position(1), 3)
    # at most one epoch per evaluation, for any batch size
    assert feed.take(Position(0, 0), 23, 1).after == Position(1)
    assert feed.take(Position(0, 0), 23, 2).after == Position(2)


@given(SIZES, st.integers(1, 9), FLAGS, st.integers(0, 99), st.integers(1, 4), st.integers(1, 3))
def test_our_epochs_hold_every_sample_once(
    sizes: list[int], n_ctx: int, flags: tuple[bool, ...], seed: int, batch: int, grad_acc: int
) -> None:
    fill, eos, bos, random = flags
    data = dataset(
        sizes, n_ctx, fill_with_next_samples=fill, separate_with_eos=eos, separate_with_bos=bos,
        sample_random_offsets=random,
    )  # fmt: skip
    feed, place, seen = SeedFeed(data, seed), Position(3), 0
    while place.epoch == 3:
        batches, after, used = feed.take(place, batch, grad_acc)
        assert 1 <= len(batches) <= grad_acc
        assert used >= 1
        for made in batches:
            assert 1 <= made.n_sequences <= batch
            for inputs, targets in rows_of(made):
                assert inputs == [BOS, *targets[:-1]]
                assert 1 <= len(targets) <= n_ctx
        # `take` does not depend on what was taken before
        again = SeedFeed(data, seed).take(place, batch, grad_acc)
        assert (again.after, again.n_samples) == (after, used)
        pairs = zip(again.batches, batches, strict=True)
        assert all(a.targets.tolist() == b.targets.tolist() for a, b in pairs)
        seen, place = seen + used, after
    assert seen == len(sizes)
    assert place == Position(4)
    assert feed.rng_state(place) == ""


def test_short_rows_stay_short_without_compat() -> None:
    data = dataset([2, 0, 5], 4)
    order = Shuffled(np.array([1, 0, 2]), np.zeros(3))
    batch, used = data.take(order, 0, 3, wraps=False)
    assert rows_of(batch) == [
        ([BOS], [EOS]),  # nothing in it: one EOS
        ([BOS, 10], [10, 11]),
        ([BOS, 210, 211, 212], [210, 211, 212, 213]),
    ]
    assert used == 3
    assert data.lengths()[0].tolist() == [data.n_tokens(i) for i in range(3)] == [2, 1, 4]
    assert [data.n_trained(i) for i in range(3)] == [2, 1, 4]
    assert rows_of(data.batch([2, 0])) == [rows_of(batch)[2], rows_of(batch)[1]]


def test_filled_rows_word_by_word() -> None:
    order = Shuffled(np.array([0, 1, 2]), np.array([0.9, 0.0, 0.0]))

    def row(**rules: Any) -> list[int]:
        data = dataset([3, 0, 2], 9, fill_with_next_samples=True, **rules)
        return rows_of(data.take(order, 0, 1, wraps=False)[0])[0][1]

    assert row() == [10, 11, 12, BOS, EOS, BOS, 210, 211]
    assert row(separate_with_eos=True) == [10, 11, 12, EOS, BOS, EOS, EOS, BOS, 210]
    assert row(separate_with_bos=False) == [10, 11, 12, EOS, 210, 211]
    assert row(sample_random_offsets=True) == [11, 12, BOS, EOS, BOS, 210, 211]


def test_places_outside_the_data() -> None:
    data = dataset([2] * 5, 2)
    for feed in (SeedFeed(data, 1), OldFeed(data, MT19937.seeded(1).text())):
        with pytest.raises(DataError, match="outside the data"):
            feed.take(Position(0, 5), 1, 1)


def test_iterations_of_epochs() -> None:
    for fill, (batch, grad_acc) in product((True, False), ((1, 1), (2, 1), (2, 3))):
        data = dataset([3, 1, 4, 1, 5, 9, 2], 6, fill_with_next_samples=fill)
        for feed in (SeedFeed(data, 1), OldFeed(data, MT19937.seeded(1).text())):
            n = iterations(feed, Position(0, 2), epochs=2, batch=batch, grad_acc=grad_acc)
            place, count = Position(0, 2), 0
            while place.epoch < 2:
                place, count = feed.take(place, batch, grad_acc).after, count + 1
            assert n == count > 0
