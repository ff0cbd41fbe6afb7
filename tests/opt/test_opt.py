"""AdamW against float64 and against ggml's own step; schedule against the formulas by hand."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.opt import arrays as opt_arrays
from nbllama.opt.adamw import AdamW
from nbllama.opt.arrays import check_finite, global_norm, n_dims
from nbllama.opt.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "blk.0.attn_q.weight.lora_a": (4, 48),
    "blk.0.attn_q.weight.lora_b": (40, 4),
    "blk.0.attn_norm.weight.lora_a": (1, 48),
    "blk.0.attn_norm.weight.lora_b": (1, 1),
    "output.weight.lora_b": (300, 150),  # longer than one chunk
}
SETTINGS: dict[str, Any] = {
    "alpha": 3e-3,
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-8,
    "decay": 0.3,
    "gclip": 1.0,
}


def arrays(seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (size * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}


def reference(params, all_grads, schedules, *, alpha, beta1, beta2, eps, decay, gclip):
    """The module's formulas in float64, arrays of one dimension not decayed."""
    x = {n: p.astype(np.float64) for n, p in params.items()}
    m = {n: np.zeros(p.shape) for n, p in params.items()}
    v = {n: np.zeros(p.shape) for n, p in params.items()}
    norms = []
    for it, (grads, s) in enumerate(zip(all_grads, schedules, strict=True), 1):
        g64 = {n: g.astype(np.float64) for n, g in grads.items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in g64.values()))
        norms.append(norm)
        c = gclip / norm if norm > gclip > 0 else 1.0
        for n in x:
            g = c * g64[n]
            m[n] = beta1 * m[n] + (1 - beta1) * g
            v[n] = beta2 * v[n] + (1 - beta2) * g * g
            wd = decay * alpha * s if x[n].shape != (1, 1) else 0.0
            mh, vh = m[n] / (1 - beta1**it), v[n] / (1 - beta2**it)
            x[n] = x[n] * (1 - wd) - alpha * s * mh / (np.sqrt(vh) + eps)
    return x, m, v, norms


@pytest.mark.parametrize(("gclip", "size"), [(1.0, 1.0), (1.0, 1e-4), (0.0, 1.0)])
def test_steps_equal_the_float64_formulas(gclip: float, size: float) -> None:
    params = arrays(0)
    grads = [arrays(seed, size) for seed in range(1, 9)]
    schedules = [0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.0, 0.5]
    settings = SETTINGS | {"gclip": gclip}
    want_x, want_m, want_v, norms = reference(params, grads, schedules, **settings)
    optimiser = AdamW(params, **settings)
    for g, s, norm in zip(grads, schedules, norms, strict=True):
        info = optimiser.step(g, s)
        # float64 sums in another order
        assert info.grad_norm == pytest.approx(norm, rel=1e-12)
        assert info.clipped == (norm > gclip > 0)
    assert optimiser.iteration == 8
    for n in params:
        # float32: 8 steps of about 10 roundings of 6e-8 each, worst case 5e-6 of the largest
        for got, want in ((params, want_x), (optimiser.m, want_m), (optimiser.v, want_v)):
            assert got[n].dtype == np.float32
            np.testing.assert_allclose(got[n], want[n], rtol=1e-6, atol=5e-6 * abs(want[n]).max())


def test_equals_ggml_opt_step_adamw() -> None:
    from tests.oracle import adamw_step

    params = arrays(0)
    params.pop("blk.0.attn_norm.weight.lora_b")  # ggml's op decays all arrays
    optimiser = AdamW(params, 2e-3, decay=0.1, decay_min_ndim=2, gclip=0)
    other = {n: (p.copy(), np.zeros_like(p), np.zeros_like(p)) for n, p in params.items()}
    for step in range(1, 7):
        grads = {n: g for n, g in arrays(step).items() if n in params}
        s = step / 6
        optimiser.step(grads, s)
        for n, (x, m, v) in other.items():
            x, m, v = adamw_step(
                x, grads[n], m, v,
                step=step, alpha=2e-3 * s, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1,
            )  # fmt: skip
            other[n] = (x, m, v)
            # ggml folds alpha and the bias correction in another order: a few float32 roundings
            # (1.2e-7 of the value) a step
            np.testing.assert_allclose(params[n], x, rtol=1e-6, atol=5e-7)
            np.testing.assert_allclose(optimiser.m[n], m, rtol=1e-6, atol=5e-7)
            np.testing.assert_allclose(optimiser.v[n], v, rtol=1e-6, atol=5e-7)


def test_first_update_moves_by_the_rate() -> None:
    x = {"a": np.zeros((2, 2), np.float32)}
    g = {"a": np.array([[3, -5], [0.25, -1e-3]], np.float32)}
    AdamW(x, alpha=0.5, decay=0, gclip=0).step(g, 0.5)
    # m / √v = ±1 at the first step; eps 1e-8 against 1e-3 is 1e-5
    np.testing.assert_allclose(x["a"], [[-0.25, 0.25], [-0.25, 0.25]], rtol=2e-5)


def test_decay_follows_rate_and_schedule() -> None:
    x = {"w.lora_a": np.full((2, 3), 2.0, np.float32), "w.lora_b": np.ones((1, 2), np.float32)}
    zero = {n: np.zeros_like(p) for n, p in x.items()}
    AdamW(x, alpha=0.1, decay=0.5).step(zero, 0.4)
    np.testing.assert_array_equal(x["w.lora_a"], np.full((2, 3), np.float32(2 * (1 - 0.02))))
    np.testing.assert_array_equal(x["w.lora_b"], 1.0)  # ne = [2, 1]: one dimension


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("blk.0.attn_norm.weight.lora_b", (1, 1), 1),
        ("blk.0.attn_norm.weight.lora_b", (1, 4), 1),
        ("blk.0.attn_norm.weight.lora_a", (1, 48), 2),
        ("blk.0.attn_q.weight.lora_a", (1, 48), 2),
        ("blk.0.attn_q.weight.lora_b", (48, 1), 2),
        ("blk.0.attn_q.weight.lora_b", (48, 4), 2),
    ],
)
def test_dimensions_as_the_old_tool_counts(name: str, shape: tuple[int, int], want: int) -> None:
    assert n_dims(name, shape) == want


def test_gradients_are_left_alone_and_nothing_large_is_allocated() -> None:
    import tracemalloc

    params = {"w.lora_a": np.ones((64, 1 << 14), np.float32)}
    grads = {"w.lora_a": np.full((64, 1 << 14), 3.0, np.float32)}
    optimiser = AdamW(params)
    optimiser.step(grads)
    tracemalloc.start()
    optimiser.step(grads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(grads["w.lora_a"], 3.0)
    assert peak < 400_000  # one float64 chunk is 262,144 bytes, the array is 4,194,304


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_gradient_changes_nothing(bad: float) -> None:
    params, grads = arrays(0), arrays(1)
    optimiser = AdamW(params)
    optimiser.step(grads)
    before = [x.copy() for d in (params, optimiser.m, optimiser.v) for x in d.values()]
    grads["output.weight.lora_b"][299, 149] = bad
    assert check_finite(grads) == "output.weight.lora_b"
    with pytest.raises(FloatingPointError, match=r"output\.weight\.lora_b"):
        optimiser.step(grads)
    after = [x for d in (params, optimiser.m, optimiser.v) for x in d.values()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimiser.iteration == 1


def test_check_finite_of_good_arrays() -> None:
    assert check_finite(arrays(0)) is None
    assert check_finite({"a": np.zeros((0, 3), np.float32)}) is None


def test_restore_continues_with_the_same_bits() -> None:
    straight, first = arrays(0), arrays(0)
    a, b = AdamW(straight), AdamW(first)
    for seed in range(1, 7):
        a.step(arrays(seed), 0.5)
    for seed in range(1, 4):
        b.step(arrays(seed), 0.5)
    second = {n: p.copy() for n, p in first.items()}
    c = AdamW(second)
    c.restore(b.m, b.v, b.iteration)
    for seed in range(4, 7):
        c.step(arrays(seed), 0.5)
    for n in straight:
        np.testing.assert_array_equal(straight[n], second[n])
        np.testing.assert_array_equal(a.m[n], c.m[n])
        np.testing.assert_array_equal(a.v[n], c.v[n])


def test_wrong_names_shapes_and_types_are_refused() -> None:
    optimiser = AdamW(arrays(0))
    grads = arrays(1)
    odd = dict(grads)
    odd["blk.0.attn_q.weight.lora_a"] = np.zeros((48, 4), np.float32)
    for bad in ({}, grads | {"x": np.zeros(1, np.float32)}, odd):
        with pytest.raises(ValueError):
            optimiser.step(bad)
    with pytest.raises(ValueError):
        optimiser.restore(arrays(1), {}, 1)
    for array in (np.zeros((3, 4)), np.zeros((4, 3), np.float32).T):
        with pytest.raises(ValueError):
            AdamW({"a": array})


def test_norm_is_summed_in_float64_and_in_fixed_order() -> None:
    # 1 + 2^20 times 1e-8: lost one by one in float32
    x = np.full(1 << 20, 1e-4, np.float32)
    x[0] = 1.0
    exact = math.sqrt(1 + ((1 << 20) - 1) * float(np.float32(1e-4)) ** 2)
    assert global_norm({"x": x}) == pytest.approx(exact, rel=1e-13)
    assert global_norm({"x": np.full(4, 3e38, np.float32)}) == pytest.approx(6e38, rel=1e-6)
    assert math.isnan(global_norm({"x": np.array([np.nan], np.float32)}))


_DIGEST = """
from tests.opt.test_opt import digest
print(digest())
"""


def digest() -> str:
    params = arrays(0)
    optimiser = AdamW(params, **SETTINGS)
    for seed in range(1, 5):
        optimiser.step(arrays(seed, 3.0), 0.7)
    h = hashlib.sha256()
    for d in (params, optimiser.m, optimiser.v):
        for x in d.values():
            h.update(x.tobytes())
    return h.hexdigest()


def test_same_bits_in_processes_with_1_and_2_threads() -> None:
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        env = dict(os.environ) | dict.fromkeys(names, threads)
        run = [sys.executable, "-c", _DIGEST]
        out = subprocess.run(run, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == digest()


def test_chunks_do_not_change_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = arrays(0)
    AdamW(whole, gclip=0).step(arrays(1))
    monkeypatch.setattr(opt_arrays, "CHUNK", 7)
    small = arrays(0)
    AdamW(small, gclip=0).step(arrays(1))
    for n in whole:
        np.testing.assert_array_equal(whole[n], small[n])


# --- schedule -----------------------------------------------------------------------------------


def test_warm_up_reaches_one_without_a_lag() -> None:
    assert [Schedule(warmup=4).factor(i) for i in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert Schedule(warmup=100).factor(1) == 0.01
    assert Schedule(warmup=1, cos_decay_steps=1_000_000).factor(1) == pytest.approx(1, abs=1e-10)


def test_cosine_after_warm_up_counts_from_step_zero() -> None:
    # as the old tool: 0.9 / 2 (1 + cos(π / 10)) + 0.1
    assert Schedule().factor(100) == pytest.approx(
        0.45 * (1 + math.cos(math.pi / 10)) + 0.1, abs=1e-15
    )
    assert Schedule().factor(100) == pytest.approx(0.978, abs=5e-4)
    assert Schedule().factor(500) == pytest.approx(0.55)
    assert Schedule().factor(1000) == Schedule().factor(99_999) == pytest.approx(0.1)


def test_restarts() -> None:
    def at(step: int) -> float:
        return Schedule(
            warmup=10,
            cos_decay_steps=100,
            cos_decay_min=0.1,
            cos_decay_restart=1.5,
            enable_restart=True,
        ).factor(step)

    assert at(10) == 1.0
    assert at(60) == pytest.approx(0.55)
    assert at(110) == pytest.approx(0.1)  # the end of a cycle belongs to it
    assert at(111) == pytest.approx(0.45 * (1 + math.cos(math.pi / 150)) + 0.1)
    assert at(110 + 75) == pytest.approx(0.55)
    assert at(110 + 150 + 112) == pytest.approx(0.45 * (1 + math.cos(math.pi * 112 / 225)) + 0.1)


def test_smallest_rate_holds_in_warm_up_too() -> None:
    assert Schedule(warmup=10, min_ratio=0.5).factor(1) == pytest.approx(0.55)
    assert Schedule(min_ratio=0.5).factor(5000) == pytest.approx(0.5 + 0.1 * 0.5)


@pytest.mark.parametrize("restart", [False, True])
def test_no_division_by_zero_and_no_endless_loop(restart: bool) -> None:
    for decay_steps in (0, -3):
        assert (
            Schedule(
                warmup=10, cos_decay_steps=decay_steps, cos_decay_min=0.2, enable_restart=restart
            ).factor(20)
            == 0.2
        )
    # shrinks 8, 4, 2, 1, 0
    assert (
        Schedule(
            warmup=0,
            cos_decay_steps=8,
            cos_decay_min=0.2,
            cos_decay_restart=0.5,
            enable_restart=True,
        ).factor(1000)
        == 0.2
    )
    assert Schedule(warmup=0).factor(0) == 1.0
