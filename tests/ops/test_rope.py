"""RoPE beyond the sweep: worked rotations, invariants, tables against the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbllama.ops.op import SERIAL
from nbllama.ops.rope import rope, rope_tables, yarn_range

PAIRINGS = pytest.mark.parametrize("halves", [False, True], ids=["interleaved", "halves"])
Array = np.ndarray


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turned(x: Array, positions: Array, tables: tuple[Array, Array], **options: Any) -> Array:
    y = x.copy()
    rope(y, positions, *tables, **options)
    return y


@PAIRINGS
def test_worked_example(halves: bool) -> None:
    """A quarter turn maps (1, 0) to (0, 1); the second pair and numbers from n_rot on stay."""
    cos = np.array([[1, 1], [0, 1]], np.float32)
    sin = np.array([[0, 0], [1, 0]], np.float32)
    x = np.array([[[1, 2, 3, 4, 5]]], np.float32)
    at = lambda p: turned(x, np.array([p], np.int32), (cos, sin), halves=halves)  # noqa: E731
    np.testing.assert_array_equal(at(0), x)
    np.testing.assert_array_equal(at(1), [[[-3, 2, 1, 4, 5] if halves else [-2, 1, 3, 4, 5]]])


@PAIRINGS
def test_inverse_undoes_and_products_depend_on_distance(halves: bool) -> None:
    x, tables = normal(1, 40, 3, 64), rope_tables(300, 64, 10000.0)
    positions = np.random.default_rng(2).integers(0, 300, 40).astype(np.int32)
    y = turned(x, positions, tables, halves=halves)
    back = turned(y, positions, tables, halves=halves, inverse=True)
    np.testing.assert_allclose(back, x, rtol=0, atol=2e-6)  # four products and two sums
    q, k = normal(3, 1, 1, 64), normal(4, 1, 1, 64)

    def product(i: int, j: int) -> float:
        qi = turned(q, np.array([i], np.int32), tables, halves=halves)
        kj = turned(k, np.array([j], np.int32), tables, halves=halves)
        return float((qi * kj).sum())

    # angles up to 200 have steps of 1.5e-5
    assert product(7, 3) == pytest.approx(product(207, 203), abs=1e-3)
    assert abs(product(7, 3) - product(7, 4)) > 0.1


def test_positions_are_looked_up_for_each_token() -> None:
    """A packed stream: positions restart, tokens with the same position are rotated equally."""
    x, tables = np.repeat(normal(1, 1, 2, 8), 5, axis=0), rope_tables(3, 8, 10000.0)
    y = turned(x, np.array([0, 1, 2, 0, 1], np.int32), tables, halves=False)
    np.testing.assert_array_equal(y[:2], y[3:])
    np.testing.assert_array_equal(y[0], x[0])
    assert np.abs(y[1] - y[2]).max() > 0.1


@PAIRINGS
def test_a_token_is_the_same_alone_and_in_a_batch(halves: bool) -> None:
    n = SERIAL // 192 + 7
    x, tables = normal(1, n, 3, 64), rope_tables(n, 64, 10000.0)
    y = turned(x, np.arange(n, dtype=np.int32), tables, halves=halves)
    for i in (0, 57, n - 1):
        alone = turned(x[i : i + 1], np.array([i], np.int32), tables, halves=halves)
        assert alone.tobytes() == y[i].tobytes()


@pytest.mark.parametrize("n_rot, base", [(64, 1e4), (128, 1e4), (64, 1e5), (128, 5e5)])
def test_tables_are_near_the_formula(n_rot: int, base: float) -> None:
    """Float32 angles drift by p i base^(-2i/n_rot) 1.2e-7 (step and product): here up to 1.3e-3."""
    cos, sin = rope_tables(4096, n_rot, base)
    assert cos.shape == sin.shape == (4096, n_rot // 2) and cos.dtype == sin.dtype == np.float32
    angle = np.arange(4096)[:, None] * base ** (-2 * np.arange(n_rot // 2) / n_rot)
    np.testing.assert_allclose(cos, np.cos(angle), rtol=0, atol=2e-3)
    np.testing.assert_allclose(sin, np.sin(angle), rtol=0, atol=2e-3)
    np.testing.assert_allclose(cos[:64], np.cos(angle[:64]), rtol=0, atol=3e-5)


def test_angles_are_multiplied_up_in_float32() -> None:
    """The drift is intended: llama.cpp has it. Exact angles would change its logits by 1e-4."""
    cos, _ = rope_tables(4096, 64, 1e4)
    step, theta = np.float32(1e4 ** (-2 / 64)), np.float32(4095)
    for i in range(32):
        assert cos[4095, i] == np.float32(np.cos(np.float64(theta)))
        theta *= step


def test_linear_scaling_and_factors() -> None:
    plain = rope_tables(401, 32, 1e4)
    scaled = rope_tables(401, 32, 1e4, freq_scale=0.25)
    np.testing.assert_allclose(scaled[0][::4], plain[0][: 401 // 4 + 1], atol=1e-6)
    factors = np.full(16, 4, np.float32)
    divided = rope_tables(401, 32, 1e4, factors=factors)
    for a, b in zip(divided, scaled, strict=True):
        np.testing.assert_array_equal(a, b)
    factors[3] = 1
    np.testing.assert_array_equal(
        rope_tables(401, 32, 1e4, factors=factors)[1][:, 3], plain[1][:, 3]
    )
    twice = rope_tables(401, 32, 1e4, attn_factor=2.0)
    np.testing.assert_array_equal(twice[1], 2 * plain[1])


def test_yarn() -> None:
    """Fast pairs keep their angle, slow ones are interpolated, all have the magnitude."""
    n_rot, base, scale, n_ctx = 64, 1e4, 0.25, 2048
    low, high = yarn_range(n_rot, n_ctx, base, beta_fast=32.0, beta_slow=1.0)
    # pair i turns 2048 * 1e4^(-i/32) / (2 pi) times: 32 times at i = 8.06, once at i = 20.1
    assert (float(low), float(high)) == (8, 21)
    cos, sin = rope_tables(64, n_rot, base, freq_scale=scale, ext_factor=1.0, n_ctx_orig=n_ctx)
    magnitude = 1 + 0.1 * np.log(4)
    np.testing.assert_allclose(cos[0], magnitude, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(cos, sin), magnitude, rtol=1e-6)
    angle = np.arange(64)[:, None] * base ** (-2 * np.arange(32) / n_rot)
    np.testing.assert_allclose(sin[:, :9], magnitude * np.sin(angle[:, :9]), atol=3e-5)
    np.testing.assert_allclose(sin[:, 21:], magnitude * np.sin(scale * angle[:, 21:]), atol=3e-5)
    half = (high - 14) / (high - low)  # how much of pair 14 is extrapolated
    mixed = angle[:, 14] * (half + scale * (1 - half))
    np.testing.assert_allclose(sin[:, 14], magnitude * np.sin(mixed), atol=3e-5)


def test_bad_arguments() -> None:
    x, tables = normal(1, 3, 2, 8), rope_tables(10, 8, 1e4)
    positions = np.array([0, 1, 2], np.int32)
    for bad in ([0, 1, 10], [-1, 1, 2]):
        with pytest.raises(
            ValueError, match=r"positions range from -?[0-9]+ to [0-9]+, but cos has 10"
        ):
            rope(x, np.array(bad, np.int32), *tables, halves=False)
    with pytest.raises(ValueError, match="x is read-only"):
        rope(np.broadcast_to(x[:1, :1], (1, 1, 8)), positions[:1], *tables, halves=False)
    with pytest.raises(ValueError, match="n_rot/2"):
        rope(x[:, :, :6].copy(), positions, *tables, halves=False)
    with pytest.raises(ValueError, match="n_rot is 7"):
        rope_tables(10, 7, 1e4)
    with pytest.raises(ValueError, match="factors has shape"):
        rope_tables(10, 8, 1e4, factors=np.ones(8, np.float32))
