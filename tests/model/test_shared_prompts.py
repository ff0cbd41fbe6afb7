"""Shared prefixes of samples, computed once: the same loss to the bit, the same gradient."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import pytest

import nbllama
from examples.toy_archs import random_adapter
from nbllama.arch import ARCHS
from nbllama.data.batch import Batch
from nbllama.data.shared import share
from nbllama.lora.pairs import Adapter
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model
from nbllama.peek.watcher import watch
from tests.arch.kinds import kinds
from tests.train.toy_runs import toy_adapter, toy_model

# (prompt tokens, further tokens) of each sample: a window of the toy models ends within
# them, and so do blocks of queries; one sample has no further tokens.
SAMPLES = ((40, 30), (40, 7), (25, 1), (33, 0), (3, 20), (0, 9), (40, 12), (1, 5))


def prompts(model: Model, parts: tuple[tuple[int, int], ...] = SAMPLES) -> Batch:
    """Samples that share their beginnings; the last third of each is trained, with any targets."""
    rng = np.random.default_rng(2)
    prompt = rng.integers(0, model.hp.n_vocab, 99)
    rows = []
    for shared, own in parts:
        more = rng.integers(0, model.hp.n_vocab, own)
        tokens = np.concatenate([prompt[:shared], more]).astype(np.int32)
        targets = rng.integers(0, model.hp.n_vocab, len(tokens)).astype(np.int32)
        targets[: len(tokens) * 2 // 3] = -1
        rows.append((tokens, targets))
    return Batch.from_rows(rows)


def check(model: Model, batch: Batch) -> None:
    """Loss and gradients of a batch with and without sharing, with and without checkpointing."""
    adapter = random_adapter(model, norms=True)
    shared = share(batch)
    assert shared.n_tokens < batch.n_tokens
    loss, grads = loss_and_gradients(model, adapter, batch, False)
    found = [loss_and_gradients(model, adapter, shared, again) for again in (False, True)]
    assert found[0][0] == found[1][0] == loss
    for name, wanted in grads.items():
        got = found[0][1][name]
        np.testing.assert_array_equal(found[1][1][name], got, err_msg=f"{name}: checkpointing")
        # both are sums of the same float32 products, in another order
        difference = float(np.linalg.norm(got - wanted)) / float(np.linalg.norm(wanted))
        if difference >= 2e-5:  # terms cancel: what does another way of summing them change?
            bound = 4 * summation_matters(model, adapter, batch, name, wanted)
            assert difference < bound < 1e-3, f"{name}: {difference:.2g}, bound {bound:.2g}"


def summation_matters(
    model: Model, adapter: Adapter, batch: Batch, name: str, wanted: np.ndarray
) -> float:
    """Return the largest relative difference of a gradient if its terms are summed in other ways.

    The samples come in three other orders, and one at a time: for Gemma 3 27B, the gradient of a
    norm is a single number, 44 times smaller than the sum of the samples' absolute values.
    """
    ends = batch.seq_offsets
    rows = [(batch.tokens[a:z], batch.targets[a:z]) for a, z in pairwise(ends)]

    def gradient(of: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return loss_and_gradients(model, adapter, Batch.from_rows(of), False)[1][name]

    orders = [np.random.default_rng(seed).permutation(len(rows)) for seed in range(3)]
    found = [gradient([rows[i] for i in order]) for order in orders]
    trained = [int((targets >= 0).sum()) for _, targets in rows]
    alone = [n * gradient([row]) for n, row in zip(trained, rows, strict=True) if n]
    found.append(np.sum(alone, axis=0) / sum(trained))
    return max(float(np.linalg.norm(g - wanted)) for g in found) / float(np.linalg.norm(wanted))


SLOW = ("gemma2, 27B", "gemma3, 27B, text", "llama, 70B (64 heads, 8 KV heads)")


@pytest.mark.parametrize("name", kinds(also_slow=SLOW))
def test_every_architecture(name: str, tmp_path: Path) -> None:
    from examples.toy_archs import MODELS

    MODELS[name].make(tmp_path / "toy.gguf")
    model = nbllama.load_model(tmp_path / "toy.gguf")
    if ARCHS[model.hp.arch].mixer:
        with pytest.raises(ValueError, match="requires its state"):
            loss_and_gradients(
                model, random_adapter(model, norms=True), share(prompts(model)), False
            )
        return
    check(model, prompts(model))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"), n_head=4, n_head_kv=2)


def test_the_same_bits_with_one_thread_and_with_two(model: Model) -> None:
    adapter, batch = toy_adapter(model), share(prompts(model))
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            numba.set_num_threads(threads)
            found.append(loss_and_gradients(model, adapter, batch, False))
    finally:
        numba.set_num_threads(before)
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        for name, g in grads.items():
            assert g.tobytes() == found[0][1][name].tobytes(), name


@pytest.mark.parametrize(
    "parts",
    [((5, 0), (5, 0)), ((6, 0), (6, 1), (6, 0)), ((2, 3), (2, 3)), ((90, 1), (90, 1), (90, 1))],
    ids=["copies", "ends within", "two tokens", "one token each"],
)
def test_extreme_shapes(model: Model, parts: tuple[tuple[int, int], ...]) -> None:
    check(model, prompts(model, parts))


def test_the_shared_tokens_have_the_bits_of_whole_samples(model: Model) -> None:
    """All activations that a watcher gets, token by token, and the batch that it gets."""
    adapter, batch = toy_adapter(model), prompts(model)
    seen = []
    for one in (batch, share(batch)):
        with watch(model, "*-0", "*-1", "result_*", "loss", adapter=adapter) as dump:
            loss_and_gradients(model, adapter, one, False)
        seen.append(dump.arrays)
    assert seen[0].keys() == seen[1].keys() and len(seen[0]) > 40
    for name, x in seen[0].items():
        if name.endswith(".grad"):  # of a shared token it is the sum over its samples
            continue
        assert x.tobytes() == seen[1][name].tobytes(), name
