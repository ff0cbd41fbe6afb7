"""GELU, squared ReLU and xIELU beyond the sweep: worked numbers, extremes, rows alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nbllama.ops.op import SERIAL
from nbllama.ops.ungated import (
    CODES,
    NO_NUMBERS,
    Xielu,
    ungated,
    ungated_grad,
    ungated_grad_ref,
    ungated_ref,
    xielu_numbers,
)

NUMBERS = Xielu(0.5, 0.75, 0.5, -1e-6)
EACH = pytest.mark.parametrize("kind", CODES)
EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 20, -20, 80, -80, 100, -100, 1000, -1000]


def run(x: np.ndarray, kind: str, numbers: Xielu = NUMBERS) -> np.ndarray:
    out = np.empty_like(x)
    ungated(x, out, kind=kind, numbers=numbers)
    return out


def test_worked_examples() -> None:
    x = np.array([[1, -2]], np.float32)
    np.testing.assert_array_equal(run(x * 3, "relu2"), [[9, 0]])
    gelu = [
        v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in (1, -2)
    ]
    np.testing.assert_allclose(run(x, "gelu"), [gelu], rtol=1e-6)
    # 0.5 + 0.5; 0.75 (exp(-2) - 1 + 2) - 1
    xielu = [1.0, 0.75 * (math.exp(-2) + 1) - 1]
    np.testing.assert_allclose(run(x, "xielu"), [xielu], rtol=1e-6)


def test_numbers_of_a_layer() -> None:
    """softplus of what is stored: log 2 for 0, the number itself from 20 on."""
    p, n, beta, eps = xielu_numbers(0.0, 30.0, 0.5, -1e-6)
    assert p == pytest.approx(math.log(2), rel=1e-7)
    assert (n, beta) == (30.5, 0.5)
    assert eps == float(np.float32(-1e-6))


@EACH
def test_extreme_arguments(kind: str) -> None:
    x = np.array([EXTREMES], np.float32)
    wanted = ungated_ref(x.astype(float), kind, NUMBERS)
    np.testing.assert_allclose(run(x, kind), wanted, rtol=1e-6, atol=1e-6)
    dout, dx = np.full_like(x, 3), x.copy()
    ungated_grad(dout, dx, kind=kind, numbers=NUMBERS)
    wanted = ungated_grad_ref(dout.astype(float), x.astype(float), kind, NUMBERS)
    np.testing.assert_allclose(dx, wanted, rtol=1e-6, atol=1e-5)


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_stay_where_they_are(bad: float, kind: str) -> None:
    x = np.ones((2, 40), np.float32)
    x[0, 5] = bad
    wrong = ~np.isfinite(run(x, kind))
    assert wrong[0, 5] and wrong.sum() == 1
    dout = np.ones_like(x)
    dout[1, 33] = bad
    ungated_grad(dout, x, kind=kind, numbers=NUMBERS)
    assert not np.isfinite(x[1, 33])
    assert np.isnan(bad) <= np.isnan(x[0, 5])


@EACH
def test_a_row_is_the_same_alone_and_in_a_batch(kind: str) -> None:
    """One token while generating (one thread) gives the bits of that token in a batch (all)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((SERIAL // 1536 + 5, 1536)).astype(np.float32)
    out = run(x, kind)
    for n in (0, 17, len(x) - 1):
        assert run(x[n : n + 1].copy(), kind).tobytes() == out[n].tobytes()


def test_arguments_are_checked() -> None:
    a, b = np.ones((2, 4, 8), np.float32)
    for bad in (b[:3], b.astype(np.float64), np.empty((8, 4), np.float32).T):
        with pytest.raises(ValueError, match="out"):
            ungated(a, bad, kind="gelu")
    with pytest.raises(ValueError, match="'swish' is not one of gelu, relu2, xielu"):
        ungated(a, b, kind="swish", numbers=NO_NUMBERS)
    with pytest.raises(ValueError, match="share memory"):
        ungated_grad(a, a, kind="gelu")
    with pytest.raises(ValueError, match="expected \\[N, F\\]"):
        ungated(a[0], b[0], kind="gelu")
    b.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        ungated(a, b, kind="relu2")
