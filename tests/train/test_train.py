"""The training loop in this process: the results of a step, and what it must not change."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.data import Position
from nbllama.errors import Diverged, UsageError
from nbllama.lora.pairs import SLOTS, init_adapter
from nbllama.lora.slots import base_names
from nbllama.model.passes import Model
from nbllama.train.forecast import check_memory
from nbllama.train.limits import limits
from nbllama.train.probe import compile_kernels, step_seconds
from nbllama.train.trainer import MOST_SKIPPED, StopRequested, Trainer
from tests.train.toy_runs import (
    RATES,
    Rows,
    random_rows,
    same_bits,
    state_of,
    toy_adapter,
    toy_model,
    trainer,
)

LENGTHS = (5, 17, 2, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"))


def one_step(model: Model, rows: Rows, **options: Any) -> tuple[float, dict[str, np.ndarray]]:
    t = trainer(model, toy_adapter(model), rows, **options)
    loss = t.step().loss
    return loss, t.gradients


def test_the_loss_is_the_sum_over_all_trained_tokens_by_their_number(model: Model) -> None:
    rows, adapter = random_rows(model, LENGTHS), toy_adapter(model)
    ones = [nbllama.loss_and_gradients(model, adapter, *row)[0] for row in rows.rows]
    numbers = [rows.n_trained(i) for i in range(len(LENGTHS))]
    wanted = float(np.dot(ones, numbers)) / sum(numbers)
    assert abs(np.mean(ones) / wanted - 1) > 1e-4  # the mean of means differs
    for batch, grad_acc in ((4, 1), (1, 4), (2, 2), (3, 2)):
        loss, _ = one_step(model, rows, batch=batch, grad_acc=grad_acc)
        # float32 logits of about 3: one rounding is 2e-7, the mean of 22 rows less
        assert loss == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("batch", "grad_acc"), [(1, 4), (2, 2), (3, 2), (4, 3)])
def test_accumulation_equals_a_larger_batch(model: Model, batch: int, grad_acc: int) -> None:
    rows = random_rows(model, LENGTHS)
    loss, grads = one_step(model, rows, batch=4)
    other_loss, other = one_step(model, rows, batch=batch, grad_acc=grad_acc)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert grads.keys() == other.keys()
    largest = max(float(np.abs(g).max()) for g in grads.values())
    for name, g in grads.items():
        assert np.abs(g).max() > 0, name
        # Sums of 33 rows in another order: some roundings of 6e-8 of the largest number, or, where
        # a norm's single number is what a long sum leaves over, of the largest one in the model.
        atol = 3e-6 * float(np.abs(g).max()) + 1e-7 * largest
        np.testing.assert_allclose(other[name], g, rtol=0, atol=atol)


def test_the_order_of_the_samples_is_the_seeds(model: Model) -> None:
    rows = random_rows(model, (6, 7, 8, 9, 10, 11))
    sizes = {}
    for seed in (1, 2):
        t = trainer(model, toy_adapter(model), rows, seed=seed)
        sizes[seed] = [t.step().tokens for _ in range(6)]
        assert sum(sizes[seed]) == 2 * (6 + 7 + 8 + 9 + 10 + 11)
    assert sizes[1] != sizes[2]


@pytest.mark.parametrize("options", [{}, {"tied": True, "biases": True}], ids=["plain", "tied"])
def test_checkpointing_and_threads_change_no_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    import numba

    # 5 blocks: with checkpointing, a block's recomputation comes after that of another one.
    # 150 tokens in 3 sequences: more than one task for every kernel.
    model = toy_model(tmp_path, n_layer=5, **options)
    rows = random_rows(model, (70, 49, 31))
    before = numba.get_num_threads()
    results: dict[tuple[int, Any], Any] = {}
    for threads in (1, 2):
        numba.set_num_threads(threads)
        for checkpointing in (False, True):
            t = trainer(model, toy_adapter(model), rows, batch=3, checkpointing=checkpointing)
            losses = [t.step().loss, t.step().loss]
            results[threads, checkpointing] = losses, t.gradients, state_of(t)
        # and with 1, 2, 3 of the 5 blocks kept
        off, on = (
            check_memory(trainer(model, toy_adapter(model), rows, batch=3, checkpointing=c), 1)
            for c in (False, True)
        )
        for kept in (1, 2, 3):
            size = on.chosen + kept * (off.chosen - on.chosen) // 4
            t = trainer(model, toy_adapter(model), rows, batch=3, activation_memory=size)
            assert t.kept == kept and check_memory(t, 1).chosen == size
            losses = [t.step().loss, t.step().loss]
            results[threads, kept] = losses, t.gradients, state_of(t)
    numba.set_num_threads(before)
    losses, grads, state = results.pop((1, False))
    assert losses[0] != losses[1]
    for name, g in grads.items():
        assert np.abs(g).max() > 0, name
    for how, (other_losses, other_grads, other) in results.items():
        assert other_losses == losses, how
        assert same_bits(other_grads, grads), how
        assert same_bits(other.arrays, state.arrays), how


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_allocates_next_to_nothing(tmp_path: Path, checkpointing: bool) -> None:
    """After the first step all memory is allocated: later steps add little, for any size."""
    model = toy_model(tmp_path, n_layer=3, n_embd=128, n_head=4, n_head_kv=2, n_ff=256)
    rows = random_rows(model, (200, 200, 200, 200))
    ranks = {slot: 4 for slot in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "out")}
    t = trainer(model, toy_adapter(model, ranks), rows, checkpointing=checkpointing)
    t.step()
    t.step()
    stream = 4 * 400 * 128  # bytes of one activation [N, C], the smallest of them
    taken = []
    tracemalloc.start()
    try:
        found = t.evaluate()
        taken.append(tracemalloc.get_traced_memory()[1])
        t.update(found)
        taken.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert taken[0] < stream / 2, "the forward and the backward pass"
    assert taken[1] < stream / 4, "what stays after the step"


def test_activation_memory_has_ends(model: Model) -> None:
    def make(nbytes: int) -> Trainer:
        rows = random_rows(model, LENGTHS)
        return trainer(model, toy_adapter(model), rows, activation_memory=nbytes)

    assert make(1 << 40).kept == model.hp.n_layer - 1
    with pytest.raises(UsageError, match="--activation-memory: the block inputs alone"):
        make(1000)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_broken_activation_reaches_the_loss(model: Model, number: float) -> None:
    """No kernel loses a NaN: masked sums, maxima and exponentials propagate it."""
    for layer, name in ((0, "attn_q"), (0, "ffn_gate"), (model.hp.n_layer - 1, "ffn_down")):
        t = trainer(model, toy_adapter(model), random_rows(model, LENGTHS), batch=4)
        t.adapter.pairs[f"blk.{layer}.{name}.weight"].b[1, 0] = number
        assert not math.isfinite(t.evaluate().loss), name


def test_the_rate_is_that_of_the_step_itself(model: Model) -> None:
    t = trainer(model, toy_adapter(model), random_rows(model, LENGTHS), alpha=0.25)
    for i in range(1, 6):
        r = t.step()
        assert (r.iteration, r.skipped) == (i, False)
        assert r.lr == 0.25 * RATES.factor(i)
    assert RATES.warmup == 3  # so both sides of the warm-up were seen


def test_a_step_reports_what_it_did(model: Model) -> None:
    rows = random_rows(model, LENGTHS)
    t = trainer(model, toy_adapter(model), rows, batch=1, grad_acc=3, gclip=0.5)
    first, second = t.step(), t.step()
    assert (first.epoch, second.epoch) == (0, 0)
    assert first.tokens + second.tokens == sum(LENGTHS) == t.tokens_seen
    assert first.trained + second.trained == sum(map(rows.n_trained, range(4)))
    assert (t.position, t.samples_seen) == (Position(1), 4)  # 3 samples, then the one that is left
    assert first.seconds > 0
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in t.gradients.values()))
    assert second.grad_norm == pytest.approx(norm, rel=1e-12)  # before clipping


def test_a_stop_between_any_two_layers_changes_nothing(model: Model) -> None:
    rows = random_rows(model, LENGTHS)
    options: dict[str, Any] = dict(batch=2, grad_acc=2, checkpointing=True)
    t = trainer(model, toy_adapter(model), rows, **options)
    t.step()
    before, calls = state_of(t), 0

    def count() -> None:
        nonlocal calls
        calls += 1

    other = trainer(model, toy_adapter(model), rows, **options)
    other.step()
    wanted = other.step(count).loss
    assert calls == 2 * 2 * model.hp.n_layer  # micro-batches, directions

    for stop_at in range(1, calls + 1):
        left = stop_at

        def stop() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise StopRequested

        with pytest.raises(StopRequested):
            t.step(stop)
        after = state_of(t)
        assert same_bits(after.arrays, before.arrays)
        assert after.counters == before.counters
    assert t.step().loss == wanted
    assert same_bits(state_of(t).arrays, state_of(other).arrays)


def spoil_loss(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t.model, "loss", lambda *a, **k: math.nan)


def spoil_infinite_loss(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t.model, "loss", lambda *a, **k: math.inf)


def spoil_gradient(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = t.model.backward

    def spoiled(bound: Any, *rest: Any) -> None:
        backward(bound, *rest)
        bound.grads["blk.1.attn_v.weight.lora_b"][3, 0] = np.inf

    monkeypatch.setattr(t.model, "backward", spoiled)


def spoil_moment(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    t.opt.v["blk.0.ffn_up.weight.lora_a"][0, 0] = np.nan


def spoil_parameter(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    t.adapter.pairs["blk.0.attn_q.weight"].b[0, 0] = np.nan


def spoil_norm(t: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    t.adapter.pairs["output_norm.weight"].a[0, 5] = np.inf
    t.bound.refresh()


@pytest.mark.parametrize(
    "spoil",
    [spoil_loss, spoil_infinite_loss, spoil_gradient, spoil_moment, spoil_parameter, spoil_norm],
)
def test_a_step_that_is_not_finite_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    model = toy_model(tmp_path)
    t = trainer(model, toy_adapter(model), random_rows(model, (5, 6, 7, 8, 9, 10)))
    t.step()
    spoil(t, monkeypatch)
    before = state_of(t)
    for i in range(MOST_SKIPPED):
        t.raise_if_diverged()
        r = t.step()
        assert r.skipped and math.isnan(r.grad_norm) and r.iteration == i + 2
        assert same_bits(state_of(t).arrays, before.arrays)
    # the data position and the counters do advance: the next samples can be good
    assert state_of(t).counters[0] == before.counters[0] + MOST_SKIPPED
    assert t.position == Position(1, 2) and t.opt.iteration == t.iteration
    with pytest.raises(Diverged, match="3 iterations in a row") as e:
        t.raise_if_diverged()
    assert e.value.exit_code == 7


def test_one_good_step_forgives_the_bad_ones(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(model, toy_adapter(model), random_rows(model, LENGTHS))
    good, bad = model.loss, lambda *a, **k: math.nan
    for how in (bad, bad, good, bad, bad, good):
        monkeypatch.setattr(model, "loss", how)
        assert t.step().skipped == (how is bad)
        t.raise_if_diverged()


def test_default_lora_on_every_slot_learns_a_text_by_heart(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = init_adapter(
        model.hp,
        dict.fromkeys((s.name for s in SLOTS), 4),
        alpha=4.0,
        lora_r=4,
        seed=1,
        shapes=model.shapes,
    )
    start = {name: p.copy() for name, p in adapter.parameters().items()}
    t = trainer(model, adapter, random_rows(model, (12, 12)), alpha=0.02)
    compile_kernels(t)
    losses = [t.step().loss for _ in range(20)]
    assert losses[0] > math.log(320) - 0.5  # untrained: about the log of the vocabulary size
    assert losses[-1] < losses[0] / 4
    for name, p in adapter.parameters().items():
        assert np.abs(p - start[name]).max() > 1e-3, f"{name} did not move"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_one_pair_alone_is_that_among_all(
    model: Model, checkpointing: bool
) -> None:
    """The work skipped below the lowest pair and next to it must not be needed."""
    rows = random_rows(model, (9, 14))
    ranks = dict.fromkeys((s.name for s in SLOTS), 2)

    def gradients(chosen: str, alone: bool) -> dict[str, np.ndarray]:
        # B = 0 in all others, so that they add nothing to the function
        adapter = init_adapter(model.hp, ranks, alpha=3.0, lora_r=2, seed=5, shapes=model.shapes)
        b = adapter.pairs[chosen].b
        b[...] = np.random.default_rng(0).standard_normal(b.shape) * 0.1
        if alone:
            adapter.pairs = {chosen: adapter.pairs[chosen]}
        t = trainer(model, adapter, rows, checkpointing=checkpointing)
        t.step()
        return t.gradients

    for _, name in base_names(model.hp.n_layer):
        among, alone = gradients(name, False), gradients(name, True)
        assert set(alone) == {f"{name}.lora_a", f"{name}.lora_b"}
        for half, g in alone.items():
            assert np.abs(g).max() > 0, half
            np.testing.assert_array_equal(g, among[half], err_msg=half)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_and_forecasting_change_nothing(model: Model, checkpointing: bool) -> None:
    rows = random_rows(model, LENGTHS)
    t, other = (
        trainer(model, toy_adapter(model), rows, checkpointing=checkpointing) for _ in range(2)
    )
    before = state_of(t)
    assert compile_kernels(t) > 0 and min(step_seconds(t)) > 0
    assert same_bits(state_of(t).arrays, before.arrays)
    assert state_of(t).counters == before.counters
    assert not any(g.any() for g in t.gradients.values())
    assert t.step().loss == other.step().loss
    assert same_bits(state_of(t).arrays, state_of(other).arrays)


def test_everything_is_compiled_before_the_first_step(tmp_path: Path) -> None:
    """Blocks of other types, too: compile time does not count as training time."""
    from nbllama.ops.linear import tiles as matmul_tiles

    model = toy_model(
        tmp_path, n_ff=128, types={"ffn_down": "Q8_0", "token_embd": "Q8_0", "*": "F32"}
    )
    t = trainer(model, toy_adapter(model), random_rows(model, (30, 20)), checkpointing=True)
    compile_kernels(t)

    def compiled() -> int:
        entries: list[Any] = [
            f(i) for f in (matmul_tiles.forward_entry, matmul_tiles.gradient_entry) for i in (0, 8)
        ]
        return sum(len(kernel.signatures) for kernel in entries)

    before = compiled()
    assert before >= 4
    t.step()
    assert compiled() == before


def test_limits_of_a_data_set(model: Model) -> None:
    rows = random_rows(model, LENGTHS)
    trained = sorted(map(rows.n_trained, range(4)), reverse=True)
    for batch in (1, 2, 3, 4, 9):
        found = limits(rows, batch)
        assert found.tokens == sum(sorted(LENGTHS, reverse=True)[:batch])
        assert found.trained == sum(trained[:batch])
        assert found.longest == 17
        assert found.mean_tokens == sum(LENGTHS) / 4
        assert found.mean_trained == sum(trained) / 4
