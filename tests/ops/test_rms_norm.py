"""RMSNorm beyond the sweep: worked numbers, adding, NaN, accuracy of long sums, rows alone."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from nbllama.ops.op import SERIAL
from nbllama.ops.rms_norm import (
    rms_norm,
    rms_norm_grad,
    rms_norm_grad_ref,
    rms_norm_grad_weight,
    rms_norm_ref,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(x: np.ndarray, w: np.ndarray, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    y, rstd = np.empty_like(x), np.empty(len(x), np.float32)
    rms_norm(x, w, eps, y=y, rstd=rstd)
    return y, rstd


def test_worked_example() -> None:
    """3, 4 has the mean square 12.5; with eps 12.5 the root is 5. All numbers are exact."""
    x, w = np.array([[3, 4]], np.float32), np.array([1, 2], np.float32)
    y, rstd = run(x, w, 12.5)
    np.testing.assert_allclose(rstd, [1 / 5], rtol=1e-7)
    np.testing.assert_allclose(y, [[3 / 5, 8 / 5]], rtol=1e-7)
    # g = (1, 2), xh = (0.6, 0.8), mean(g xh) = 1.1: dx = ((1, 2) - 1.1 (0.6, 0.8)) / 5
    dx, dw = np.empty_like(x), np.zeros(2, np.float32)
    rms_norm_grad(np.ones_like(x), x, w, rstd, dx=dx)
    np.testing.assert_allclose(dx, [[0.068, 0.224]], rtol=1e-6)
    rms_norm_grad_weight(np.ones_like(x), x, rstd, dw)
    np.testing.assert_allclose(dw, [0.6, 0.8], rtol=1e-6)


def test_gradients_add() -> None:
    x, dy, w = normal(1, 37, 101), normal(2, 37, 101), normal(3, 101)
    _, rstd = run(x, w)
    alone = np.empty_like(x)
    rms_norm_grad(dy, x, w, rstd, dx=alone)
    added = normal(4, 37, 101)
    before = added.copy()
    rms_norm_grad(dy, x, w, rstd, dx=added, add=True)
    # the same numbers except for one rounding of the sum
    np.testing.assert_allclose(added, before + alone, rtol=0, atol=1e-6)
    once, twice = np.zeros_like(w), np.zeros_like(w)
    rms_norm_grad_weight(dy, x, rstd, once)
    for _ in range(2):
        rms_norm_grad_weight(dy, x, rstd, twice)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


def test_dy_may_be_dx() -> None:
    x, dy, w = normal(1, 5, 64), normal(2, 5, 64), normal(3, 64)
    _, rstd = run(x, w)
    dx = np.empty_like(x)
    rms_norm_grad(dy, x, w, rstd, dx=dx)
    rms_norm_grad(dy, x, w, rstd, dx=dy)
    np.testing.assert_allclose(dy, dx, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_reach_their_row_only(bad: float) -> None:
    x, w = normal(1, 3, 64), normal(2, 64)
    x[1, 7] = bad
    y, _ = run(x, w)
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isnan(y[1, 7])
    assert np.isnan(bad) == np.isnan(y[1]).all()


def test_large_and_tiny_rows() -> None:
    """Squares up to 1e36 stay finite; a row of zeros gives zeros through eps."""
    x, w = np.zeros((3, 1024), np.float32), np.ones(1024, np.float32)
    x[0], x[1] = 1e18, 1e-20
    y, rstd = run(x, w)
    np.testing.assert_allclose(y[0], 1, rtol=1e-6)
    np.testing.assert_allclose(y[1], 1e-20 / np.sqrt(1e-5), rtol=1e-6)
    assert (y[2] == 0).all() and np.isfinite(rstd).all()


def test_mean_of_squares_is_summed_wide() -> None:
    """A million squares of 1e-8 and one of 1e6: a float32 sum would lose all except the one."""
    x = np.full((1, 2**20), 1e-4, np.float32)
    x[0, 0] = 1000
    _, rstd = run(x, np.ones(2**20, np.float32), 0.0)
    exact = 1 / np.sqrt(np.mean(x.astype(np.float64) ** 2))
    np.testing.assert_allclose(rstd[0], exact, rtol=1e-7)


def test_weight_gradient_of_many_tokens() -> None:
    """Partial sums: 20000 tokens of one sign, where a plain float32 sum is about 1e-5 off."""
    x, w = np.abs(normal(1, 20000, 32)), np.ones(32, np.float32)
    dy = np.abs(normal(2, 20000, 32))
    _, rstd = run(x, w)
    dw = np.zeros_like(w)
    rms_norm_grad_weight(dy, x, rstd, dw)
    _, wanted = rms_norm_grad_ref(dy.astype(float), x.astype(float), w.astype(float), 1e-5)
    np.testing.assert_allclose(dw, wanted, rtol=2e-6)


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """One token while generating (one thread) gives the bits of that token in a batch (all)."""
    x, w = normal(1, SERIAL // 576 + 20, 576), normal(2, 576)
    y, rstd = run(x, w)
    for n in (0, 57, len(x) - 1):
        alone, r = run(x[n : n + 1].copy(), w)
        assert alone.tobytes() == y[n].tobytes() and r[0] == rstd[n]


def test_heads_are_rows() -> None:
    x, w = normal(1, 6, 3, 64), normal(2, 64)
    y, _ = run(x.reshape(18, 64), w)
    np.testing.assert_allclose(y.reshape(6, 3, 64)[2, 1], rms_norm_ref(x[2], w, 1e-5)[1], rtol=2e-6)


def test_outputs_are_checked() -> None:
    x, w = normal(1, 4, 8), normal(2, 8)
    y, rstd = np.empty_like(x), np.empty(4, np.float32)
    for bad_y, bad_rstd in [
        (y[:3], rstd),
        (y.astype(np.float64), rstd),
        (np.empty((8, 4), np.float32).T, rstd),
        (y, rstd[:3]),
        (y, np.empty((4, 1), np.float32)),
    ]:
        with pytest.raises(ValueError, match="rms_norm"):
            rms_norm(x, w, 1e-5, y=bad_y, rstd=bad_rstd)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y is read-only"):
        rms_norm(x, w, 1e-5, y=y, rstd=rstd)
    with pytest.raises(ValueError, match="dw has shape"):
        rms_norm_grad_weight(x, x, rstd, np.zeros(7, np.float32))
    with pytest.raises(ValueError, match="expected \\[N, C\\]"):
        rms_norm(x[0], w, 1e-5, y=x[0], rstd=rstd)


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    """docs/ops.md: its finite differences assert the statements of the text."""
    text = (Path(__file__).parents[2] / "docs" / "ops.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "assert worst < 1e-9" in block
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    assert runpy.run_path(str(script))["worst"] > 0
