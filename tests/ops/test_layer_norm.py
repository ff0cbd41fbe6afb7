"""LayerNorm beyond the sweep: worked numbers, adding, accuracy of long sums, rows alone."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.ops.layer_norm import (
    layer_norm,
    layer_norm_grad,
    layer_norm_grad_ref,
    layer_norm_grad_weight,
)
from nbllama.ops.op import SERIAL


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(
    x: np.ndarray, w: np.ndarray | None, b: np.ndarray | None = None, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, mean, rstd = np.empty_like(x), *np.empty((2, len(x)), np.float32)
    layer_norm(x, w, b, eps, y=y, mean=mean, rstd=rstd)
    return y, mean, rstd


def test_worked_example() -> None:
    """1, 7 has mean 4 and variance 9; with eps 16 the deviation is 5. All numbers are exact."""
    x, w, b = np.array([[1, 7]], np.float32), np.array([1, 2], np.float32), np.ones(2, np.float32)
    y, mean, rstd = run(x, w, b, 16.0)
    np.testing.assert_allclose([mean[0], rstd[0]], [4, 1 / 5], rtol=1e-7)
    np.testing.assert_allclose(y, [[1 - 3 / 5, 1 + 6 / 5]], rtol=1e-6)
    np.testing.assert_allclose(run(x, w, None, 16.0)[0], [[-3 / 5, 6 / 5]], rtol=1e-6)
    np.testing.assert_allclose(run(x, None, b, 16.0)[0], [[2 / 5, 8 / 5]], rtol=1e-6)
    np.testing.assert_allclose(run(x, None, None, 16.0)[0], [[-3 / 5, 3 / 5]], rtol=1e-6)
    # g = (1, 2), xh = (-0.6, 0.6), mean(g) = 1.5, mean(g xh) = 0.3:
    # dx = ((1, 2) - 1.5 - 0.3 (-0.6, 0.6)) / 5
    dx, dw = np.empty_like(x), np.zeros(2, np.float32)
    layer_norm_grad(np.ones_like(x), x, w, mean=mean, rstd=rstd, dx=dx)
    np.testing.assert_allclose(dx, [[-0.064, 0.064]], rtol=1e-6)
    layer_norm_grad_weight(np.ones_like(x), x, mean=mean, rstd=rstd, dw=dw)
    np.testing.assert_allclose(dw, [-0.6, 0.6], rtol=1e-6)


@pytest.mark.parametrize("has_w", [False, True])
def test_gradients_add(has_w: bool) -> None:
    x, dy, w = normal(1, 37, 101), normal(2, 37, 101), normal(3, 101) if has_w else None
    _, mean, rstd = run(x, w)
    alone, added = np.empty_like(x), normal(4, 37, 101)
    layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=alone)
    before = added.copy()
    layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=added, add=True)
    np.testing.assert_allclose(added, before + alone, rtol=0, atol=1e-6)
    wide = None if w is None else w.astype(float)
    wanted, dw = layer_norm_grad_ref(dy.astype(float), x.astype(float), wide, 1e-5)
    np.testing.assert_allclose(alone, wanted, rtol=0, atol=5e-6)
    twice = np.zeros(101, np.float32)
    for _ in range(2):
        layer_norm_grad_weight(dy, x, mean=mean, rstd=rstd, dw=twice)
    np.testing.assert_allclose(twice, 2 * dw, rtol=0, atol=2e-5)


def test_dy_may_be_dx() -> None:
    x, dy, w = normal(1, 5, 64), normal(2, 5, 64), normal(3, 64)
    _, mean, rstd = run(x, w)
    dx = np.empty_like(x)
    layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=dx)
    layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=dy)
    np.testing.assert_allclose(dy, dx, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_reach_their_row_only(bad: float) -> None:
    x, w = normal(1, 3, 64), normal(2, 64)
    x[1, 7] = bad
    y, _, _ = run(x, w)
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isnan(y[1]).all()  # the mean is NaN, and so is every y


def test_a_constant_row_is_the_bias() -> None:
    x, w, b = np.full((1, 64), 3.25, np.float32), normal(1, 64), normal(2, 64)
    np.testing.assert_array_equal(run(x, w, b)[0][0], b)


def test_sums_are_wide() -> None:
    """A million of 1 next to one of 1e6: a float32 sum of squares would lose all but the one."""
    x = np.ones((1, 2**20), np.float32)
    x[0, ::2] = -1
    x[0, 0] = 1e6
    _, mean, rstd = run(x, None, None, 0.0)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean[0], exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(rstd[0], 1 / exact.std(), rtol=1e-6)


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """One token while generating (one thread) gives the bits of that token in a batch (all)."""
    x, w, b = normal(1, SERIAL // 576 + 20, 576), normal(2, 576), normal(3, 576)
    y, mean, rstd = run(x, w, b)
    for n in (0, 57, len(x) - 1):
        alone, m, r = run(x[n : n + 1].copy(), w, b)
        assert alone.tobytes() == y[n].tobytes() and (m[0], r[0]) == (mean[n], rstd[n])


def test_outputs_are_checked() -> None:
    x, w = normal(1, 4, 8), normal(2, 8)
    y, mean, rstd = np.empty_like(x), *np.empty((2, 4), np.float32)
    for bad in (
        {"y": y[:3]},
        {"y": y.astype(np.float64)},
        {"mean": mean[:3]},
        {"rstd": np.empty((4, 1), np.float32)},
    ):
        with pytest.raises(ValueError, match="layer_norm"):
            layer_norm(x, w, None, 1e-5, **{"y": y, "mean": mean, "rstd": rstd, **bad})
    with pytest.raises(ValueError, match="b has shape"):
        layer_norm(x, w, w[:7].copy(), 1e-5, y=y, mean=mean, rstd=rstd)
    with pytest.raises(ValueError, match="expected \\[N, C\\]"):
        layer_norm(x[0], w, None, 1e-5, y=y, mean=mean, rstd=rstd)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y is read-only"):
        layer_norm(x, w, None, 1e-5, y=y, mean=mean, rstd=rstd)
    with pytest.raises(ValueError, match="dw has shape"):
        layer_norm_grad_weight(x, x, mean=mean, rstd=rstd, dw=np.zeros(7, np.float32))
