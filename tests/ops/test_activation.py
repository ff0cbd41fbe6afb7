"""SwiGLU and GeGLU beyond the sweep: worked numbers, extreme arguments, rows alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nbllama.ops.activation import gated, gated_grad, gated_ref
from nbllama.ops.op import SERIAL

EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 20, -20, 80, -80, 100, -100, 1000, -1000, 1e30, -1e30]


def run(gate: np.ndarray, up: np.ndarray, gelu: bool) -> np.ndarray:
    out = np.empty_like(gate)
    gated(gate, up, out, gelu=gelu)
    return out


def test_worked_examples() -> None:
    gate, up = np.array([[1, -2]], np.float32), np.array([[3, 10]], np.float32)
    silu = [3 / (1 + math.exp(-1)), -20 / (1 + math.exp(2))]
    np.testing.assert_allclose(run(gate, up, False), [silu], rtol=1e-6)
    gelu = [
        x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) for x in (1, -2)
    ]
    np.testing.assert_allclose(run(gate, up, True), [[3 * gelu[0], 10 * gelu[1]]], rtol=1e-6)


@pytest.mark.parametrize("gelu", [False, True])
def test_extreme_arguments(gelu: bool) -> None:
    """act(a) is a for large a and 0 for very negative a; slopes are 1 and 0; nothing is NaN."""
    gate = np.array([EXTREMES], np.float32)
    up, dout = np.full_like(gate, 2), np.full_like(gate, 3)
    if gelu:  # its cube is infinite from 1e13 on; there llama.cpp's table has ended at 65504
        gate = np.clip(gate, -1000, 1000)
    out = run(gate, up, gelu)
    np.testing.assert_allclose(out, gated_ref(gate.astype(float), up, gelu), atol=1e-6, rtol=1e-6)
    dgate, dup = gate.copy(), up.copy()
    gated_grad(dout, dgate, dup, gelu=gelu)
    far = np.abs(gate) >= 100
    np.testing.assert_allclose(dgate[far], np.where(gate[far] > 0, 6, 0), atol=1e-6)
    np.testing.assert_allclose(dup[far], np.where(gate[far] > 0, 3 * gate[far], 0), atol=1e-6)
    np.testing.assert_allclose(dgate[gate == 0], 3.0, rtol=1e-6)  # act'(0) = 1/2


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_stay_where_they_are(bad: float, gelu: bool) -> None:
    gate, up = np.ones((2, 40), np.float32), np.ones((2, 40), np.float32)
    gate[0, 5], up[1, 33] = bad, bad
    out = run(gate, up, gelu)
    wrong = ~np.isfinite(out)
    assert wrong[0, 5] and wrong[1, 33] and wrong.sum() == 2
    dout = np.ones_like(gate)
    dout[0, 0] = bad
    gated_grad(dout, gate, up, gelu=gelu)
    assert not np.isfinite(gate[0, 0]) and not np.isfinite(up[0, 0])
    assert not np.isfinite(gate[1, 33])


@pytest.mark.parametrize("gelu", [False, True])
def test_a_row_is_the_same_alone_and_in_a_batch(gelu: bool) -> None:
    """One token while generating (one thread) gives the bits of that token in a batch (all)."""
    rng = np.random.default_rng(1)
    gate, up = rng.standard_normal((2, SERIAL // 1536 + 5, 1536)).astype(np.float32)
    out = run(gate, up, gelu)
    for n in (0, 17, len(gate) - 1):
        assert run(gate[n : n + 1].copy(), up[n : n + 1].copy(), gelu).tobytes() == out[n].tobytes()


def test_shared_memory_is_refused() -> None:
    a, b, c = np.ones((3, 4, 8), np.float32)
    for arrays in ((a, a, b), (a, b, a), (a, b, b)):
        with pytest.raises(ValueError, match="share memory"):
            gated_grad(*arrays)
    gated_grad(a, b, c)


def test_outputs_are_checked() -> None:
    a, b, out = np.ones((3, 4, 8), np.float32)
    for bad in (out[:3], out.astype(np.float64), np.empty((8, 4), np.float32).T):
        with pytest.raises(ValueError, match="out"):
            gated(a, b, bad)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        gated(a, b, out)
    with pytest.raises(ValueError, match="up is read-only"):
        gated_grad(a, b, out)
    with pytest.raises(ValueError, match="expected \\[N, F\\]"):
        gated(a[0], b[0], a[0])
