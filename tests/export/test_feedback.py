"""Rounding with error feedback: the kernel, its reference, and brute force on tiny problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numba import get_num_threads, set_num_threads

from nbllama.export import feedback
from nbllama.export.feedback import factorise, round_matrix
from nbllama.export.grids import Grid, grid_of
from nbllama.export.rewrite import IDS
from nbllama.quants.encode import quantise
from nbllama.quants.encode.feedback import round_piece_ref


def inputs(n: int, tokens: int, seed: int = 0) -> np.ndarray:
    """Inputs `[tokens, n]` that depend on each other, of different sizes."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((n, n)) * np.exp(0.5 * rng.standard_normal(n))
    return (rng.standard_normal((tokens, n)) @ mix).astype(np.float32)


def nearest(w: np.ndarray, grid: Grid) -> np.ndarray:
    scale, low = (np.repeat(a, grid.group, axis=1) for a in (grid.scale, grid.low))
    codes = np.clip(np.rint((w + low) / scale), grid.first, grid.last)
    return codes.astype(np.int8)


def cost_of(w: np.ndarray, grid: Grid, codes: np.ndarray, h: np.ndarray) -> np.ndarray:
    e = (grid.values(codes) - w).astype(np.float64)
    return np.einsum("ri,ij,rj->r", e, h, e)


def problem(kind: str, rows: int = 7, n: int = 512) -> tuple[np.ndarray, Grid, np.ndarray]:
    rng = np.random.default_rng(3)
    base = rng.standard_normal((rows, n)).astype(np.float32)
    grid = grid_of(IDS[kind], quantise(IDS[kind], base), base.shape)
    w = base + 0.05 * rng.standard_normal(base.shape).astype(np.float32)
    x = inputs(n, 300)
    return w, grid, x.T @ x


@pytest.mark.parametrize("kind", ["Q4_1", "Q2_K", "Q6_K"])
def test_kernel_and_reference_are_the_same_rounding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, grid, h = problem(kind)
    factor = factorise(h)
    monkeypatch.setattr(feedback, "PIECE", 96)  # 512 is no multiple of it
    got = round_matrix(w, grid, factor)
    scale, low = (np.repeat(a, grid.group, axis=1)[:, factor.order] for a in grid[:2])
    moved = w[:, factor.order].astype(np.float64)
    codes, _, cost = round_piece_ref(
        moved, moved, factor.lower, scale, low=low,
        importance=factor.importance, first=grid.first, last=grid.last,
    )  # fmt: skip
    same = got.codes[:, factor.order] == codes
    # if a float32 sum falls on the other side of a half, everything after it differs
    assert same.mean() > 0.9 and same[:, -256:].mean() > 0.99
    np.testing.assert_allclose(got.cost, cost, rtol=0.02)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_feedback_keeps_products_better_than_nearest(kind: str) -> None:
    for n in (256, 512):  # one piece, and two
        keeps_products_better(*problem(kind, n=n))


def keeps_products_better(w: np.ndarray, grid: Grid, h: np.ndarray) -> None:
    before = w.copy()
    factor = factorise(h)
    got = round_matrix(w, grid, factor)
    np.testing.assert_array_equal(w, before)
    damped = h + feedback.DAMPING * h.diagonal().mean() * np.eye(len(h))
    np.testing.assert_allclose(got.cost, cost_of(w, grid, got.codes, damped), rtol=1e-3)
    plain = cost_of(w, grid, nearest(w, grid), h)
    assert (cost_of(w, grid, got.codes, h) < 0.7 * plain).all()


def test_it_finds_nearly_the_best_of_all_codes() -> None:
    rng = np.random.default_rng(5)
    n, cases, ratios = 6, 20, []
    for _ in range(cases):
        x = rng.standard_normal((40, 2)) @ rng.standard_normal((2, n)) + 0.3 * rng.standard_normal(
            (40, n)
        )
        h = (x.T @ x).astype(np.float32)
        grid = Grid(np.full((1, 1), 0.5, np.float32), np.zeros((1, 1), np.float32), n, -1, 1)
        w = rng.uniform(-0.5, 0.5, (1, n)).astype(np.float32)
        got = round_matrix(w, grid, factorise(h, 1e-4))
        every = np.array(list(itertools.product((-1, 0, 1), repeat=n)), np.int8)
        e = (0.5 * every - w).astype(np.float64)
        best = np.einsum("ri,ij,rj->r", e, h, e).min()
        ours, plain = (cost_of(w, grid, c, h)[0] for c in (got.codes, nearest(w, grid)))
        ratios.append((ours / best, plain / best))
    ours, plain = np.array(ratios).T
    assert ours.min() > 1 - 1e-6
    assert (ours <= plain * (1 + 1e-6)).mean() > 0.9  # it is not a search of all codes
    assert np.exp(np.log(ours).mean()) < 0.6 * np.exp(np.log(plain).mean())


def test_threads_change_nothing() -> None:
    w, grid, h = problem("Q4_1", rows=33)
    found, before = [], get_num_threads()
    for threads in {1, before}:
        set_num_threads(threads)
        got = round_matrix(w, grid, factorise(h))
        found.append((got.codes.tobytes(), got.cost.tobytes()))
    set_num_threads(before)
    assert len(set(found)) == 1


def test_inputs_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        factorise(np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="cannot be factorised"):
        factorise(np.array([[1, 0], [5, 1]], np.float32))
    w, grid, _ = problem("Q4_1")
    with pytest.raises(ValueError, match="is float64"):
        round_matrix(w.astype(np.float64), grid, factorise(np.eye(512, dtype=np.float32)))
    with pytest.raises(ValueError, match="a factor of 4 columns"):
        round_matrix(w, grid, factorise(np.eye(4, dtype=np.float32)))
