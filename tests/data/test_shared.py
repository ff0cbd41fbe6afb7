"""Shared prefixes of samples: the remaining rows, and the largest possible number."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import Batch, Packed, Samples, SeedFeed
from nbllama.data.order import Position
from nbllama.data.packing import MOST_TOKENS
from nbllama.data.shared import FEWEST_ROWS, LEAST, most_rows, share
from nbllama.ops.attention.few import MOST_QUERIES
from nbllama.ops.linear.matvec import MOST_TOKENS as MOST_OF_A_PRODUCT_WITHOUT_PANELS
from nbllama.train.limits import limits
from nbllama.train.sharing import largest_shared

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
BATCHES = st.lists(TOKENS, min_size=1, max_size=7)


def batch_of(rows: list[list[int]]) -> Batch:
    """A batch in which every second token is trained."""
    made = []
    for row in rows:
        targets = np.arange(len(row), dtype=np.int32)
        targets[::2] = -1
        made.append((np.array(row, np.int32), targets))
    return Batch.from_rows(made)


def n_distinct(rows: list[list[int]]) -> int:
    """Tokens to compute: different prefixes; the first two tokens count together."""
    beginnings = {tuple(r[:n]) for r in rows for n in range(LEAST, len(r) + 1)}
    alone = sum(len(r) < LEAST for r in rows)
    return len(beginnings) + alone + (LEAST - 1) * len({b for b in beginnings if len(b) == LEAST})


def test_the_example_of_the_page() -> None:
    a, b, c, d, e, f, g, h = range(8)
    batch = batch_of([[a, b, c, d, e], [a, b, c, f], [a, b, c, d, g, h]])
    found = share(batch)
    tree = found.tree
    assert tree is not None and tree.samples is batch
    assert found.tokens.tolist() == [a, b, c, d, e, f, g, h]
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert found.seq_offsets.tolist() == [0, 5, 6, 8]
    assert tree.rows.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 1, 2, 3, 6, 7]
    assert tree.paths.tolist() == tree.rows.tolist()
    assert tree.k_offsets.tolist() == [0, 5, 9, 15]
    rows, targets = found.trained()
    assert rows.tolist() == [1, 3, 1, 5, 1, 3, 7] and targets.tolist() == [1, 3, 1, 3, 1, 3, 5]
    assert found.n_trained == batch.n_trained == 7 and found.whole() is batch


@given(BATCHES)
def test_every_token_has_its_row(rows: list[list[int]]) -> None:
    batch = batch_of(rows)
    found = share(batch)
    if n_distinct(rows) < FEWEST_ROWS or n_distinct(rows) == batch.n_tokens:
        assert found is batch
        return
    tree = found.tree
    assert tree is not None and found.n_tokens == n_distinct(rows) < batch.n_tokens
    assert np.array_equal(found.tokens[tree.rows], batch.tokens)
    assert np.array_equal(found.positions[tree.rows], batch.positions)
    assert np.array_equal(found.trained()[1], batch.trained()[1])
    own, ends = found.seq_offsets, tree.k_offsets
    for s in range(found.n_sequences):
        path = tree.paths[ends[s] : ends[s + 1]]
        n = own[s + 1] - own[s]
        assert n > 0 and np.array_equal(path[-n:], np.arange(own[s], own[s + 1]))
        assert np.array_equal(found.positions[path], np.arange(len(path)))
    for r in range(found.n_tokens):
        places = tree.order[tree.starts[r] : tree.starts[r + 1]]
        assert len(places) and (np.diff(places) > 0).all() and (tree.paths[places] == r).all()
    assert tree.starts[-1] == len(tree.paths)


@given(BATCHES, st.integers(1, 7))
def test_most_rows_of_any_choice(rows: list[list[int]], n: int) -> None:
    n = min(n, len(rows))
    found = most_rows([np.array(r, np.int32) for r in rows], n)
    assert found == max(n_distinct(list(part)) for part in combinations(rows, n))


def test_few_rows_are_not_shared() -> None:
    """Other kernels would compute so few rows, with other bits."""
    assert max(MOST_QUERIES, MOST_OF_A_PRODUCT_WITHOUT_PANELS) + 1 == FEWEST_ROWS
    few = batch_of([[1, 2, 3, 4]] * 5)
    assert share(few) is few
    assert share(batch_of([[1, 2, 3, 4, 5]] * 5)).n_tokens == 5
    apart = batch_of([[1, 2, 3, 4, 5], [1, 3, 3, 4, 5]])  # sharing one token does not help
    assert share(apart) is apart


def samples(rows: list[list[int]], n_ctx: int) -> Samples:
    """Samples with these inputs, of which the last target is trained."""
    ids = np.concatenate([[*r, 99] for r in rows]).astype(np.int32)
    offsets = np.cumsum([0] + [len(r) + 1 for r in rows])
    trained = np.zeros(len(ids), bool)
    trained[offsets[1:] - 1] = True
    return Samples(ids, trained, offsets, np.arange(1, len(rows) + 1), n_ctx, "")


@given(BATCHES, st.integers(1, 3), st.integers(0, 5))
def test_batches_stay_within_their_bounds(rows: list[list[int]], batch: int, seed: int) -> None:
    plain = samples(rows, 9)
    for data in (plain, Packed(plain), Packed(plain, shared=True)):
        bound = limits(data, batch, shares=True)
        feed, place = SeedFeed(data, seed), Position()
        while place.epoch < 2:
            (made,), place, _ = feed.take(place, batch, 1)
            assert share(made).n_tokens <= bound.computed
            assert made.n_tokens <= bound.keys and made.n_trained <= bound.trained


def test_packing_counts_computed_tokens() -> None:
    prompt = list(range(10))
    rows = [[*prompt, 20 + i] for i in range(12)]
    data = samples(rows, 16)
    order = SeedFeed(Packed(data), 0)
    assert [b.n_sequences for b in order.take(Position(), 1, 99).batches] == [1] * 12
    shared = SeedFeed(Packed(data, shared=True), 0).take(Position(), 1, 99).batches
    assert [b.n_sequences for b in shared] == [6, 6]  # 10 + 6 of 16
    assert share(shared[0]).n_tokens == 16
    copies = Packed(samples([prompt] * 40, 10), shared=True)
    found = SeedFeed(copies, 0).take(Position(), 1, 99).batches
    assert found[0].n_tokens == MOST_TOKENS * 10


def test_what_records_can_save_is_known() -> None:
    prompt = list(range(50))
    data = samples([[*prompt, 60 + i, 5] for i in range(9)], 99)
    assert largest_shared(data, 4, tokens=4 * 52) == (50 + 4 * 2, 4 * 52)
    assert limits(data, 4).computed == limits(data, 4).tokens == 4 * 52


@pytest.mark.parametrize("n", [1, 3])
def test_samples_of_the_same_tokens(n: int) -> None:
    """A sample that is a prefix of another sample has no separate rows."""
    found = share(batch_of([[1, 2, 3, 4, 5, 6]] * n + [[1, 2, 3]]))
    assert found.n_tokens == 6 and found.n_sequences == 1
    assert found.tree is not None and len(found.tree.rows) == 6 * n + 3
