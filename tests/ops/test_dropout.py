"""LoRA dropout: the generator against published numbers, the mask against its definition."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest

from nbllama.kernels.lanes import PANEL
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.ops.dropout import Dropout, add_dropped, dropout_for, dropped, keep_ref, philox_ref
from nbllama.ops.linear.panels import n_panels
from tests.train.toy_runs import random_rows, same_bits, state_of, toy_adapter, toy_model, trainer

# Random123's known answers for philox4x32 with 10 rounds: counter, key, result
KNOWN = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_generator_gives_the_published_numbers(counter: str, key: str, result: str) -> None:
    k0, k1 = words(key)
    got = philox_ref(np.array([words(counter)], np.uint32), (k0, k1))
    assert got.tolist() == [words(result)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (37, 130)])
def test_the_kernel_is_the_reference(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    mask = dropout_for(0.3, 2**62 + 1, 70_000, 5).at(11, 3)
    got = dropped(x, mask, np.empty(x.size + 5, np.float32))
    np.testing.assert_allclose(got, x * keep_ref(mask, *shape), rtol=2e-7)


def test_the_share_that_is_left_out() -> None:
    x = np.ones((200, 500), np.float32)
    for p in (0.0, 0.1, 0.5, 0.9):
        got = dropped(x, dropout_for(p, 1, 2, 3), np.empty(x.size, np.float32))
        # 100,000 values: the standard deviation of the share is at most 0.0016
        assert (got == 0).mean() == pytest.approx(p, abs=0.008)
        assert set(np.unique(got)) <= {np.float32(0), np.float32(1 / (1 - p))}


def test_masks_differ_by_seed_step_micro_batch_block_and_input() -> None:
    first = dropout_for(0.5, 1, 2, 3).at(4, 1)
    others = [
        dropout_for(0.5, 9, 2, 3).at(4, 1), dropout_for(0.5, 1, 9, 3).at(4, 1),
        dropout_for(0.5, 1, 2, 9).at(4, 1), dropout_for(0.5, 1, 2, 3).at(9, 1),
        dropout_for(0.5, 1, 2, 3).at(4, 2),
    ]  # fmt: skip
    masks = [keep_ref(m, 20, 50) > 0 for m in (first, *others)]
    for other in masks[1:]:
        assert 0.4 < (masks[0] == other).mean() < 0.6
    assert np.array_equal(masks[0], keep_ref(dropout_for(0.5, 1, 2, 3).at(4, 1), 20, 50) > 0)


def test_what_is_added_to_dx() -> None:
    rng = np.random.default_rng(2)
    n, width, rank = 37, 50, 5
    dh = rng.standard_normal((n, rank)).astype(np.float32)
    a = rng.standard_normal((rank, width)).astype(np.float32)
    dx = rng.standard_normal((n, width)).astype(np.float32)
    packed = np.zeros((n_panels(n), 6, PANEL), np.float32)
    for t in range(n):
        packed[t // PANEL, :rank, t % PANEL] = dh[t]
    mask = dropout_for(0.4, 1, 2, 3)
    wanted = dx + (dh.astype(np.float64) @ a) * keep_ref(mask, n, width)
    add_dropped(packed, a, mask, dx)
    np.testing.assert_allclose(dx, wanted, rtol=0, atol=3e-6)
    for bad in (packed[:-1], packed[:, :4]):
        with pytest.raises(ValueError):
            add_dropped(np.ascontiguousarray(bad), a, mask, dx)


def test_too_little_memory_and_a_share_of_1_are_refused() -> None:
    x, mask = np.ones((3, 4), np.float32), Dropout(0.5, (1, 2))
    with pytest.raises(ValueError, match="too small"):
        dropped(x, mask, np.empty(11, np.float32))
    with pytest.raises(ValueError, match="below 1"):
        dropout_for(1.0, 1, 1, 1)


# In the model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"), n_layer=3)


def test_checkpointing_and_threads_change_no_bit(model: Model) -> None:
    rows, before, found = random_rows(model, (70, 49, 31)), numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        for checkpointing in (False, True):
            t = trainer(
                model, toy_adapter(model), rows, batch=2, grad_acc=2, checkpointing=checkpointing,
                dropout=0.3,
            )  # fmt: skip
            losses = [t.step().loss, t.step().loss]
            found.append((losses, dict(t.gradients), state_of(t).arrays))
    numba.set_num_threads(before)
    for losses, gradients, arrays in found[1:]:
        assert losses == found[0][0]
        assert same_bits(gradients, found[0][1]) and same_bits(arrays, found[0][2])
    without = trainer(model, toy_adapter(model), rows, batch=2, grad_acc=2)
    assert without.step().loss != found[0][0][0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_gradient_is_the_slope_under_the_same_mask(model: Model, checkpointing: bool) -> None:
    """Central differences of the float32 loss along the gradient, where they are largest."""
    adapter, rows = toy_adapter(model), random_rows(model, (9, 14))
    batch = rows.batch([0, 1])
    mask = dropout_for(0.4, 3, 7, 0)
    bound = Bound(model, adapter, trained=True)
    acts = model.activations(
        adapter, batch.n_tokens, batch.n_trained, checkpointing=checkpointing, dropout=True
    )
    buffers = model.loss_buffers(adapter, batch.n_trained)

    def loss(gradient: bool) -> float:
        bound.refresh()
        bound.dropout = mask
        model.forward(bound, acts, batch)
        return model.loss(bound, acts, buffers, batch, weight=1.0, gradient=gradient)

    loss(True)
    model.backward(bound, acts, batch)
    # The sum of the losses is about 80 and has errors of about 1e-5; the steps change it by 0.01 to
    # 1, and cubic terms are small compared with that.
    for name, p in adapter.parameters().items():
        g = bound.grads[name].astype(np.float64)
        length = float(np.linalg.norm(g))
        step = 1e-2 * g / length
        kept = p.copy()
        p[...] = kept + step
        above = loss(False)
        p[...] = kept - step
        below = loss(False)
        p[...] = kept
        assert (above - below) / 2e-2 == pytest.approx(length, rel=0.01, abs=5e-3), name


def test_generation_and_a_bound_of_its_own_have_none(model: Model, tmp_path: Path) -> None:
    t = trainer(model, toy_adapter(model), random_rows(model, (9, 14)), dropout=0.5)
    t.step()
    assert t.bound.dropout is None
    assert Bound(model, t.adapter).dropout is None
