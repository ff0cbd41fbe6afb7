"""SGD, Lion and LoRA+ against float64, schedules against their formulas by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nbllama.opt.adamw import AdamW
from nbllama.opt.lion import Lion
from nbllama.opt.names import OPTIMISERS
from nbllama.opt.schedule import Schedule
from nbllama.opt.sgd import SGD
from tests.opt.test_opt import SETTINGS, arrays

S = [0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.0, 0.5]


def clipped(grads: dict[str, np.ndarray], gclip: float) -> dict[str, np.ndarray]:
    wide = {n: g.astype(np.float64) for n, g in grads.items()}
    norm = math.sqrt(sum(float((g**2).sum()) for g in wide.values()))
    return {n: g * (gclip / norm if norm > gclip > 0 else 1.0) for n, g in wide.items()}


def sgd64(x, m, g, rate, beta1, beta2):
    m = beta1 * m + g
    return x - rate * m, m


def lion64(x, m, g, rate, beta1, beta2):
    x = x - rate * np.sign(beta1 * m + (1 - beta1) * g)
    return x, beta2 * m + (1 - beta2) * g


@pytest.mark.parametrize("b_ratio", [1.0, 16.0])
@pytest.mark.parametrize("gclip", [1.0, 0.0])
@pytest.mark.parametrize(("kind", "formula"), [(SGD, sgd64), (Lion, lion64)])
def test_steps_equal_the_float64_formulas(
    kind: Any, formula: Any, gclip: float, b_ratio: float
) -> None:
    params = arrays(0)
    x = {n: p.astype(np.float64) for n, p in params.items()}
    m = {n: np.zeros(p.shape) for n, p in params.items()}
    settings = SETTINGS | {"gclip": gclip, "b_ratio": b_ratio}
    optimiser = kind(params, **settings)
    alpha, decay = settings["alpha"], settings["decay"]
    for seed, s in enumerate(S, 1):
        grads = arrays(seed)
        optimiser.step(grads, s)
        for n, g in clipped(grads, gclip).items():
            rate = alpha * s * (b_ratio if n.endswith(".lora_b") else 1.0)
            shrunk = x[n] * (1 - rate * decay) if x[n].shape != (1, 1) else x[n]
            moved, m[n] = formula(np.zeros_like(x[n]), m[n], g, rate, 0.8, 0.95)
            x[n] = shrunk + moved
    assert optimiser.v == {} and optimiser.iteration == len(S)
    for n in params:
        # float32: 8 steps of some roundings of 6e-8 each; a sign is the same unless what it is the
        # sign of is smaller than a rounding, which no value of these is
        for got, want in ((params, x), (optimiser.m, m)):
            np.testing.assert_allclose(got[n], want[n], rtol=1e-6, atol=5e-6 * abs(want[n]).max())


def test_lora_plus_is_a_rate_for_every_b() -> None:
    a, b = arrays(0), arrays(0)
    AdamW(a, b_ratio=4.0, gclip=0).step(arrays(1), 0.5)
    AdamW(b, alpha=4e-3, gclip=0).step(arrays(1), 0.5)
    slow = arrays(0)
    AdamW(slow, gclip=0).step(arrays(1), 0.5)
    for n in a:
        wanted = b if n.endswith(".lora_b") else slow
        np.testing.assert_array_equal(a[n], wanted[n])


@pytest.mark.parametrize("kind", [row.load() for row in OPTIMISERS.values()])
def test_restore_continues_with_the_same_bits(kind: Any) -> None:
    straight, first = arrays(0), arrays(0)
    a, b = kind(straight), kind(first)
    for seed in range(1, 7):
        a.step(arrays(seed), 0.5)
    for seed in range(1, 4):
        b.step(arrays(seed), 0.5)
    c = kind(first)
    c.restore(b.m, b.v, b.iteration)
    for seed in range(4, 7):
        c.step(arrays(seed), 0.5)
    for n in straight:
        np.testing.assert_array_equal(straight[n], first[n])


@pytest.mark.parametrize("kind", [SGD, Lion])
def test_second_moments_of_another_optimiser_are_refused(kind: Any) -> None:
    params = arrays(0)
    other = AdamW(arrays(0))
    with pytest.raises(ValueError, match="second moments"):
        kind(params).restore(other.m, other.v, 1)
    with pytest.raises(ValueError):
        AdamW(params).restore(other.m, {}, 1)


def test_constant() -> None:
    got = [
        Schedule(warmup=4, cos_decay_steps=10, cos_decay_min=0.1, kind="constant").factor(i)
        for i in (1, 3, 4, 10, 99)
    ]
    assert got == [0.25, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_from_the_warm_up_to_the_end() -> None:
    got = [
        Schedule(warmup=4, cos_decay_steps=12, cos_decay_min=0.2, kind="linear").factor(i)
        for i in (2, 4, 6, 8, 12, 13)
    ]
    assert got == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.2, 0.2], abs=1e-15)
    assert (
        Schedule(warmup=9, cos_decay_steps=3, cos_decay_min=0.2, kind="linear").factor(5) == 5 / 9
    )
    assert (
        Schedule(warmup=9, cos_decay_steps=3, cos_decay_min=0.2, kind="linear").factor(9) == 0.2
    )  # an end within the warm-up


def test_wsd_is_stable_and_then_falls() -> None:
    got = [
        Schedule(
            warmup=2, cos_decay_steps=20, cos_decay_min=0.0, kind="wsd", wsd_decay=0.25
        ).factor(i)
        for i in (1, 2, 15, 16, 19, 20, 21)
    ]
    assert got == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.2, 0.0, 0.0], abs=1e-15)
    assert Schedule(
        warmup=2, cos_decay_steps=20, cos_decay_min=0.0, min_ratio=0.5, kind="wsd", wsd_decay=1.0
    ).factor(10) == pytest.approx(0.5 + 0.5 * 10 / 18)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="constant, linear, cosine, wsd"):
        Schedule(warmup=0, cos_decay_steps=10, kind="step").factor(1)
