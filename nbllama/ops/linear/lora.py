"""The thin products of a LoRA pair, which are added to the large product of the base weight.

    y = x Wᵀ + h Bᵀ,   h = s x Aᵀ          A (R, n_in), B (n_out, R), s = alpha / lora_r

    dh = s dy B        dx = dy W + dh A     (`matmul_grad` adds `dh A`, and `matmul` adds `h Bᵀ`)
    dA = dhᵀ x         dB = dyᵀ h           (`lora_grad`)

Both h and dh include the factor s and are stored *packed*, as panels `[n_panels, R6, PANEL]`. R6
is R rounded up to a multiple of ROWS; the rows beyond R are zero. No n_out x n_in matrix is formed.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import get_thread_id, prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.simd import fma_tile
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.turns import in_turn
from nbllama.ops.linear.panels import n_panels, pack_panel, panels_of
from nbllama.ops.op import check_array, check_output, readonly

COLUMNS = 128  # columns of dA or dB per task


def packed_rows(rank: int) -> int:
    """Return `rank` rounded up to a multiple of the micro-kernel's ROWS."""
    return -(-rank // ROWS) * ROWS


def lora_ref(x: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """Return s (x Aᵀ) Bᵀ `[N, n_out]` for x `[N, n_in]`, computed in plain numpy."""
    return scale * (x @ a.T) @ b.T


def lora_grad_ref(
    dy: np.ndarray, x: np.ndarray, a: np.ndarray, b: np.ndarray, *, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients (dx, dA, dB) of `lora_ref`."""
    dh = scale * dy @ b
    return dh @ a, dh.T @ x, dy.T @ (scale * x @ a.T)


@kernel(parallel=True)
def _thin(m, row, step, k, xp, scale, hp, rank, cs):
    """Compute hp[p, r, :] = scale * sum_k m[r*row + k*step] * xp[p, k, :]."""
    high = hp.shape[1]
    for p in prange(xp.shape[0]):
        c = cs[get_thread_id()]
        for r in range(0, high, ROWS):
            fma_tile(m, r * row, row, step, xp, p * k * PANEL, PANEL, k, c, r * PANEL, PANEL, True)
        for r in range(rank):
            for j in range(PANEL):
                hp[p, r, j] = scale * c[r * PANEL + j]
        for r in range(rank, high):
            for j in range(PANEL):
                hp[p, r, j] = np.float32(0.0)


@kernel(parallel=True)
def _pack_thin(x, n, xp, m, h0, h1, h2, cs):
    """Pack each panel of x, and multiply it by all rows of m while the panel is in the cache.

    The rows of the product are distributed over h0, h1 and h2, in that order.
    """
    high = m.shape[0]
    k = x.shape[1]
    second = h0.shape[1]
    third = second + h1.shape[1]
    for p in prange(xp.shape[0]):
        pack_panel(x, n, p, xp)
        c = cs[get_thread_id()]
        for r in range(0, high, ROWS):
            fma_tile(m, r * k, k, 1, xp, p * k * PANEL, PANEL, k, c, r * PANEL, PANEL, True)
        for r in range(high):
            for j in range(PANEL):
                if r < second:
                    h0[p, r, j] = c[r * PANEL + j]
                elif r < third:
                    h1[p, r - second, j] = c[r * PANEL + j]
                else:
                    h2[p, r - third, j] = c[r * PANEL + j]


@kernel()
def _outer_block(hp, x, n, task, out):
    """Run one task: out[:, c] = sum over tokens t of h[t, :] * x[t, c] for COLUMNS columns c."""
    high = hp.shape[1]
    width = x.shape[1]
    whole = width // PANEL * PANEL
    first = task * COLUMNS
    last = min(first + COLUMNS, width)
    for r in range(high):
        out[r, first:last] = np.float32(0.0)
    for p in range(hp.shape[0]):
        t0 = p * PANEL
        tokens = min(PANEL, n - t0)
        for r in range(0, high, ROWS):
            at = (p * high + r) * PANEL
            for c in range(first, min(last, whole), PANEL):
                fma_tile(
                    hp, at, PANEL, 1, x, t0 * width + c, width, tokens,
                    out, r * width + c, width, p == 0,
                )  # fmt: skip
        for r in range(high):
            for t in range(tokens):
                for c in range(max(first, whole), last):
                    out[r, c] += hp[p, r, t] * x[t0 + t, c]


@kernel(parallel=True)
def _outer(hp, x, n, out):
    for task in prange((x.shape[1] + COLUMNS - 1) // COLUMNS):
        _outer_block(hp, x, n, task, out)


@kernel(parallel=True)
def _outer_packed(gp, h, db, cs):
    """Compute db[v, r] += sum over tokens of gp[p, v, j] * h[p*PANEL + j, r].

    Each row of h is padded to a multiple of PANEL numbers.
    """
    n_out, ranks = db.shape
    for task in prange((n_out + ROWS - 1) // ROWS):
        c = cs[get_thread_id()]
        v0 = task * ROWS
        rows = min(ROWS, n_out - v0)
        for r0 in range(0, ranks, PANEL):
            have = min(PANEL, ranks - r0)
            if rows == ROWS:
                for p in range(gp.shape[0]):
                    fma_tile(
                        gp, (p * n_out + v0) * PANEL, PANEL, 1,
                        h, p * PANEL * h.shape[1] + r0, h.shape[1], PANEL, c, 0, PANEL, p == 0,
                    )  # fmt: skip
            else:
                for i in range(rows):
                    for r in range(have):
                        total = np.float32(0.0)
                        for p in range(gp.shape[0]):
                            for j in range(PANEL):
                                total += gp[p, v0 + i, j] * h[p * PANEL + j, r0 + r]
                        c[i * PANEL + r] = total
            for i in range(rows):
                for r in range(have):
                    db[v0 + i, r0 + r] += c[i * PANEL + r]


@kernel(parallel=True)
def _add_hidden(hp, b, y):
    for n in prange(y.shape[1]):
        for t in range(y.shape[0]):
            total = np.float32(0.0)
            for r in range(b.shape[1]):
                total += hp[t // PANEL, r, t % PANEL] * b[n, r]
            y[t, n] += total


def add_hidden(hp: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
    """Add h Bᵀ to y `[N, n_out]` for a few tokens.

    hp is h packed `[P, R6, PANEL]`, and b is `[n_out, R]`.
    """
    if b.shape[0] != y.shape[1] or hp.shape[1] < b.shape[1] or hp.shape[0] != n_panels(len(y)):
        raise ValueError(f"add_hidden: mismatched shapes: h {hp.shape}, b {b.shape}, y {y.shape}")
    check_array("add_hidden", "h", hp, hp.shape)
    check_array("add_hidden", "b", b, b.shape)
    check_output("add_hidden", "y", y, y.shape)
    _add_hidden(readonly(hp), readonly(b), y)


_memory: dict[str, np.ndarray] = {}


def reused(name: str, *shape: int) -> np.ndarray:
    """Return float32 memory of the given shape; later calls with the same name reuse the memory.

    Memory is therefore allocated only in the first training step.
    """
    size = math.prod(shape)
    if name not in _memory or _memory[name].size < size:
        _memory[name] = np.empty(size, np.float32)
    return _memory[name][:size].reshape(shape)


def _tiles(size: int) -> np.ndarray:
    return reused("tiles", get_num_threads(), size)


@in_turn
def thin_product(
    m: np.ndarray, xp: np.ndarray, scale: float, out: np.ndarray, *, transposed: bool = False
) -> np.ndarray:
    """Return scale * X Mᵀ, packed as `[P, R6, PANEL]`, for X packed as xp `[P, K, PANEL]`.

    m is M `[R, K]` or, with `transposed`, Mᵀ `[K, R]`:

        h  = thin_product(A, xp, s, ...)
        dh = thin_product(B, gp, s, ..., transposed=True)

    `out` is float32 memory of any shape. The result is written to the start of `out` and
    returned as a view.
    """
    check_array("thin_product", "m", m, m.shape)
    check_array("thin_product", "panels", xp, xp.shape)
    rank, k = (m.shape[1], m.shape[0]) if transposed else m.shape
    if xp.shape[1] != k or xp.shape[2] != PANEL:
        raise ValueError(f"mismatched shapes: panels {xp.shape}, LoRA matrix {m.shape}")
    high = packed_rows(rank)
    hp = out.reshape(-1)[: xp.shape[0] * high * PANEL].reshape(xp.shape[0], high, PANEL)
    rows = reused("rows", high, k)
    rows[:rank] = m.T if transposed else m
    rows[rank:] = 0
    _thin(readonly(rows), k, 1, k, readonly(xp), np.float32(scale), hp, rank, _tiles(high * PANEL))
    return hp


def outer_product(hp: np.ndarray, x: np.ndarray, rank: int) -> np.ndarray:
    """Return the sum over tokens of h[t, :]ᵀ x[t, :], float32 `[rank, C]`.

    hp is h packed `[P, R6, PANEL]`, and x is `[N, C]`:

        dA  = outer_product(dhp, x, R)
        dBᵀ = outer_product(hp, dy, R)
    """
    check_outer(hp, x, rank)
    n, width = x.shape
    out = np.empty((hp.shape[1], width), np.float32)
    _outer(readonly(hp), readonly(x), n, out)
    return out[:rank]


def check_outer(hp: np.ndarray, x: np.ndarray, rank: int) -> None:
    """Raise `ValueError` unless `outer_product` accepts these arrays."""
    check_array("outer product", "x", x, x.shape)
    check_array("outer product", "h", hp, hp.shape)
    if hp.shape[0] != n_panels(len(x)) or hp.shape[1] < rank:
        raise ValueError(f"LoRA panels of shape {hp.shape} do not fit x of shape {x.shape}")


@in_turn
def add_outer_packed(gp: np.ndarray, hp: np.ndarray, db: np.ndarray) -> None:
    """Add dyᵀ h to db `[V, R]`.

    gp is dy packed `[P, V, PANEL]`, and hp is h packed `[P, R6, PANEL]`.
    """
    check_array("outer product", "dy", gp, gp.shape)
    check_array("outer product", "h", hp, hp.shape)
    check_output("outer product", "db", db, (gp.shape[1], db.shape[1]))
    if len(gp) != len(hp) or hp.shape[1] < db.shape[1]:
        raise ValueError(f"mismatched shapes: h {hp.shape}, dy {gp.shape}, db {db.shape}")
    if not len(gp):
        return
    h = reused("h", len(hp) * PANEL, -(-db.shape[1] // PANEL) * PANEL)
    h[:] = 0
    h[:, : db.shape[1]] = hp.transpose(0, 2, 1).reshape(len(h), -1)[:, : db.shape[1]]
    _outer_packed(readonly(gp), readonly(h), db, _tiles(ROWS * PANEL))


_NONE = np.empty((0, 0, PANEL), np.float32)


@in_turn
def pack_with_hidden(
    x: np.ndarray,
    memory: np.ndarray,
    factors: Sequence[tuple[np.ndarray, float, np.ndarray]],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pack x `[N, K]` into `memory`, and multiply it by up to three matrices in the same pass.

    `factors` contains one tuple (M `[R, K]`, s, memory for the product) per matrix. Returns the
    panels of x, and for each matrix the packed product s x Mᵀ.
    """
    if not 1 <= len(factors) <= 3:
        raise ValueError(f"pack_with_hidden: got {len(factors)} factors, expected 1 to 3")
    xp = panels_of(x, memory)
    k, panels = x.shape[1], len(xp)
    heights = [packed_rows(len(m)) for m, _, _ in factors]
    rows = reused("rows", sum(heights), k)
    products, first = [], 0
    for (m, scale, out), high in zip(factors, heights, strict=True):
        if np.ndim(m) != 2 or m.shape[1] != k or m.dtype != np.float32:
            raise ValueError(f"a LoRA matrix of shape {np.shape(m)} does not fit x {x.shape}")
        if out.dtype != np.float32 or out.size < panels * high * PANEL:
            raise ValueError(f"{out.size} elements are too few for h if x has shape {x.shape}")
        np.multiply(m, np.float32(scale), out=rows[first : first + len(m)])
        rows[first + len(m) : first + high] = 0
        products.append(out.reshape(-1)[: panels * high * PANEL].reshape(panels, high, PANEL))
        first += high
    h = products + [_NONE] * (3 - len(products))
    tiles = _tiles(len(rows) * PANEL)
    _pack_thin(readonly(x), len(x), xp, readonly(rows), h[0], h[1], h[2], tiles)
    return xp, products
