"""Packing: whole samples up to a number of tokens, each once per epoch, from two integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.toy_models import make_llama
from nbllama.data import Batch, Packed, Position, Samples, SeedFeed
from nbllama.data.feed import iterations
from nbllama.data.order import shuffled
from nbllama.model.passes import Model, load_model
from nbllama.train.limits import limits
from tests.train.toy_runs import Rows, toy_adapter, trainer

VOCAB = 320


def samples(sizes: list[int], n_ctx: int, seed: int = 0) -> Samples:
    """Samples with these numbers of input tokens; a random part is trained, at least the last."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, sum(sizes) + len(sizes)).astype(np.int32)
    offsets = np.cumsum([0] + [n + 1 for n in sizes])
    trained = rng.random(len(ids)) < 0.4
    trained[offsets[1:] - 1] = True
    return Samples(ids, trained, offsets, np.arange(1, len(sizes) + 1), n_ctx, "")


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int, int, int, int]:
    n_ctx = draw(st.integers(1, 20))
    sizes = draw(st.lists(st.integers(1, n_ctx), min_size=1, max_size=40))
    return sizes, n_ctx, draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 9))


@given(packings())
def test_every_sample_comes_once_an_epoch_and_batches_are_full(
    case: tuple[list[int], int, int, int, int],
) -> None:
    sizes, n_ctx, batch, grad_acc, seed = case
    data = Packed(samples(sizes, n_ctx))
    feed, room, n = SeedFeed(data, seed), batch * n_ctx, len(sizes)
    bound = limits(data, batch)
    position, steps = Position(), 0
    for epoch in range(2):
        order = shuffled(n, seed, epoch).order
        expected = np.concatenate([data.batch([i]).tokens for i in order])
        got: list[Batch] = []
        while position.epoch == epoch:
            assert feed.after(position, batch, grad_acc) == feed.take(position, batch, grad_acc)[1]
            batches, after, n_samples = feed.take(position, batch, grad_acc)
            assert 1 <= len(batches) <= grad_acc
            assert n_samples == sum(b.n_sequences for b in batches)
            # The same from a new feed: two integers are the whole state.
            again = SeedFeed(data, seed).take(position, batch, grad_acc)
            assert all(
                np.array_equal(getattr(a, f), getattr(b, f))
                for a, b in zip(batches, again.batches, strict=True)
                for f in ("tokens", "targets", "positions", "seq_offsets")
            )
            got, position, steps = got + batches, after, steps + 1
        assert np.array_equal(np.concatenate([b.tokens for b in got]), expected)
        at = 0
        for b in got:
            assert b.n_tokens <= min(room, bound.tokens) and b.n_trained <= bound.trained
            at += b.n_sequences
            if at < n:
                assert b.n_tokens + sizes[order[at]] > room  # the next one did not fit
    assert iterations(feed, Position(), epochs=2, batch=batch, grad_acc=grad_acc) == steps


def test_what_is_passed_on() -> None:
    plain = samples([3, 5, 2], 8)
    packed = Packed(plain)
    assert (packed.n_samples, packed.kind, packed.n_tokens(1)) == (3, "chat", 5)
    assert packed.n_trained(1) == plain.n_trained(1)
    assert [x.tolist() for x in packed.lengths()] == [x.tolist() for x in plain.lengths()]
    assert packed.per_batch(2) == pytest.approx(2 * 8 / (10 / 3) - 0.5)
    with pytest.raises(ValueError, match="do not wrap"):
        packed.used(shuffled(3, 0, 0), 0, 1, wraps=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path)
    return load_model(path)


def padded(data: Samples, i: int, n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample i as a row of n_ctx tokens, padded at the end with tokens without a target."""
    b = data.batch([i])
    rest = n_ctx - b.n_tokens
    return np.pad(b.tokens, (0, rest)), np.pad(b.targets, (0, rest), constant_values=-1)


def test_the_gradient_is_that_of_unpacked_and_of_padded_rows(model: Model) -> None:
    """Packed, one sample per batch, one sample per padded row: the same loss and gradient, within
    the rounding of sums in another order (float32; 1e-5 of each tensor's largest value)."""
    sizes, n_ctx = [9, 3, 16, 1, 7, 12, 2, 5], 16
    data = samples(sizes, n_ctx)
    adapter = toy_adapter(model)
    packed = trainer(model, adapter, Packed(data), batch=4, grad_acc=1)
    found = packed.evaluate()
    assert found.n_samples == 8 and found.tokens == sum(sizes)

    one = trainer(model, adapter, data, batch=1, grad_acc=8)
    other = one.evaluate()
    assert (other.tokens, other.trained) == (found.tokens, found.trained)

    rows = trainer(model, adapter, Rows([padded(data, i, n_ctx) for i in range(8)]), batch=8)
    third = rows.evaluate()
    assert (third.tokens, third.trained) == (8 * n_ctx, found.trained)

    for evaluation, t in ((other, one), (third, rows)):
        assert evaluation.loss == pytest.approx(found.loss, rel=1e-5)
        for name, g in packed.gradients.items():
            largest = float(np.abs(g).max())
            assert largest > 0, name
            assert np.abs(t.gradients[name] - g).max() <= 1e-5 * largest, name
