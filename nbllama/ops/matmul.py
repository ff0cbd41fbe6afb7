"""Quantised matrix product: Y = X Wᵀ (+ H Bᵀ), and its gradient dX = dY W (+ dH A).

W is read in its own GGUF type, a tile at a time: a tile of W is decoded into a scratch array that
stays in the cache, and the micro-kernel (`nbllama.simd.fma_tile`) multiplies it with all tokens of
a chunk.

    forward     Y[t, n]  = sum_k X[t, k] W[n, k]   a task owns `tile` rows n of W and a chunk of
    tokens
    gradient    dX[t, k] = sum_n dY[t, n] W[n, k]  a task owns `tile` columns k of W and a chunk of
    tokens

The second operand is *packed* once into panels of `PANEL` neighbouring tokens, `xp[p, k, j] =
x[p*PANEL + j, k]`, so that the micro-kernel's vectors run over tokens in both directions and one
pack of the input serves q, k and v. The low-rank part of a LoRA pair rides along: `h = s X Aᵀ` (see
`lora_ops`) is already packed, and its product with B (forward) or A (gradient) is added to the same
tile before it is written.

Every output number belongs to one task and its sum runs over k (or n) in ascending order: no tile
size and no number of threads changes its bits.

Source of the blocking: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(2008). llama.cpp: `ggml_mul_mat`, and `ggml_out_prod` for the gradient. finetune.cpp: t05,
t08, t11, t20, t25, t26, t29, t34.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, get_thread_id, prange

from nbllama._jit import kernel
from nbllama.ops.op import check_array, check_output, readonly
from nbllama.quants import QUANTS, decode_blocks
from nbllama.simd import PANEL, ROWS, VL, fma_tile, transpose_add_tile, transpose_tile

K_BLOCK = 256  # columns of W decoded at a time in the forward product
ROW_BLOCK = 192  # rows of W decoded at a time in the gradient
TILE = 96  # rows of W a forward task owns
TILE_COLUMNS = 160  # columns of W a gradient task owns; a block of 256 where that is the type's
CHUNK = 256  # tokens a task handles: its output tile stays in the L2 cache
PAD = 16  # a stride that is a power of two would map a tile's rows to the same cache lines


class Weight(NamedTuple):
    """A matrix of the base model, undecoded: `raw` uint8 `[nbytes]` read-only, `shape` (n_out,
    n_in).
    """

    name: str
    type_id: int
    raw: np.ndarray
    shape: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        q = QUANTS[self.type_id]
        return self.shape[1] // q.block_size * q.type_size


def matmul_ref(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """X Wᵀ in plain numpy: x `[N, K]`, w `[n_out, K]` -> `[N, n_out]`."""
    return x @ w.T


def matmul_grad_ref(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dX, dW) = (dY W, dYᵀ X). The base is frozen, so the package itself never forms dW."""
    return dy @ w, dy.T @ x


@kernel()
def pack_panel(x, n, p, xp):
    """xp[p, k, j] = x[p*PANEL + j, k] for one panel, zeros past token n."""
    t0 = p * PANEL
    have = min(PANEL, n - t0)
    width = x.shape[1]
    whole = width // VL * VL if have == PANEL else 0
    for k in range(0, whole, VL):
        for j in range(0, PANEL, VL):
            transpose_tile(x, (t0 + j) * width + k, width, xp, (p * width + k) * PANEL + j, PANEL)
    for k in range(whole, width):
        for j in range(have):
            xp[p, k, j] = x[t0 + j, k]
        for j in range(have, PANEL):
            xp[p, k, j] = np.float32(0.0)


@kernel(parallel=True)
def _pack(x, n, xp):
    for p in prange(xp.shape[0]):
        pack_panel(x, n, p, xp)


@kernel()
def _store(cs, width, rows, have, y, t0, n0, add):
    """y[t0 + t, n0 + i] = (or +=) cs[i, t]: the finished tile, transposed into the output."""
    ld = y.shape[1]
    square_t, square_i = have // VL * VL, rows // VL * VL
    for t in range(0, square_t, VL):
        at = (t0 + t) * ld + n0
        if add:
            for i in range(0, square_i, VL):
                transpose_add_tile(cs, i * width + t, width, y, at + i, ld)
        else:
            for i in range(0, square_i, VL):
                transpose_tile(cs, i * width + t, width, y, at + i, ld)
    for t in range(have):
        first = square_i if t < square_t else 0
        out = y[t0 + t, n0 : n0 + rows]
        for i in range(first, rows):
            out[i] = out[i] + cs[i * width + t] if add else cs[i * width + t]


def _forward_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    @kernel(parallel=True)
    def forward(raw, row_bytes, n_out, n_in, xp, n, hp, b, rank, y, add, tile, k_block, ws, cs):
        n_tiles = (n_out + tile - 1) // tile
        panels = xp.shape[0]
        per_chunk = CHUNK // PANEL
        n_chunks = (panels + per_chunk - 1) // per_chunk
        ld = max(k_block, ROW_BLOCK) + PAD
        for task in prange(n_tiles * n_chunks):
            me = get_thread_id()
            w = ws[me]
            c = cs[me]
            n0 = (task % n_tiles) * tile
            rows = min(tile, n_out - n0)
            p0 = (task // n_tiles) * per_chunk
            p1 = min(p0 + per_chunk, panels)
            width = (p1 - p0) * PANEL
            c[: (rows + ROWS - 1) // ROWS * ROWS * width] = np.float32(0.0)
            for k0 in range(0, n_in, k_block):
                ks = min(k_block, n_in - k0)
                for i in range(rows):
                    src = (n0 + i) * row_bytes + k0 // block * size
                    decode_blocks(type_id, raw, src, ks // block, w, i * ld)
                for p in range(p0, p1):
                    at = (p * n_in + k0) * PANEL
                    for i in range(0, rows, ROWS):
                        fma_tile(
                            w, i * ld, ld, 1, xp, at, PANEL, ks,
                            c, i * width + (p - p0) * PANEL, width,
                        )  # fmt: skip
            for r0 in range(0, rank, ROW_BLOCK):
                ranks = min(ROW_BLOCK, rank - r0)
                for i in range(rows):
                    for r in range(ranks):
                        w[i * ld + r] = b[n0 + i, r0 + r]
                for p in range(p0, p1):
                    at = (p * hp.shape[1] + r0) * PANEL
                    for i in range(0, rows, ROWS):
                        fma_tile(
                            w, i * ld, ld, 1, hp, at, PANEL, ranks,
                            c, i * width + (p - p0) * PANEL, width,
                        )  # fmt: skip
            t0 = p0 * PANEL
            _store(c, width, rows, min(width, n - t0), y, t0, n0, add)

    return forward


def _gradient_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    @kernel(parallel=True)
    def gradient(raw, row_bytes, n_out, n_in, gp, n, dhp, a, rank, dx, add, tile, ws, cs):
        n_tiles = (n_in + tile - 1) // tile
        panels = gp.shape[0]
        per_chunk = CHUNK // PANEL
        n_chunks = (panels + per_chunk - 1) // per_chunk
        ld = tile + PAD
        for task in prange(n_tiles * n_chunks):
            me = get_thread_id()
            w = ws[me]
            c = cs[me]
            k0 = (task % n_tiles) * tile
            columns = min(tile, n_in - k0)
            p0 = (task // n_tiles) * per_chunk
            p1 = min(p0 + per_chunk, panels)
            width = (p1 - p0) * PANEL
            c[: (columns + ROWS - 1) // ROWS * ROWS * width] = np.float32(0.0)
            for n0 in range(0, n_out, ROW_BLOCK):
                rows = min(ROW_BLOCK, n_out - n0)
                for i in range(rows):
                    src = (n0 + i) * row_bytes + k0 // block * size
                    decode_blocks(type_id, raw, src, columns // block, w, i * ld)
                for p in range(p0, p1):
                    at = (p * n_out + n0) * PANEL
                    for i in range(0, columns, ROWS):
                        fma_tile(
                            w, i, 1, ld, gp, at, PANEL, rows,
                            c, i * width + (p - p0) * PANEL, width,
                        )  # fmt: skip
            for r0 in range(0, rank, ROW_BLOCK):
                ranks = min(ROW_BLOCK, rank - r0)
                for r in range(ranks):
                    for i in range(columns):
                        w[r * ld + i] = a[r0 + r, k0 + i]
                for p in range(p0, p1):
                    at = (p * dhp.shape[1] + r0) * PANEL
                    for i in range(0, columns, ROWS):
                        fma_tile(
                            w, i, 1, ld, dhp, at, PANEL, ranks,
                            c, i * width + (p - p0) * PANEL, width,
                        )  # fmt: skip
            t0 = p0 * PANEL
            _store(c, width, columns, min(width, n - t0), dx, t0, k0, add)

    return gradient


forward_entry = cache(_forward_entry)
gradient_entry = cache(_gradient_entry)


@cache
def split(total: int, unit: int, largest: int, parts: int) -> int:
    """Size of a tile: a multiple of `unit`, at most about `largest`, so that `parts` threads get
    equal work.

    Each thread takes a contiguous run of the ceil(total / tile) tiles; the size with the least work
    for the busiest thread wins, the larger one where two are level.
    """
    best, best_cost = 0, float("inf")
    for tile in range(unit, max(unit, min(largest, -(-total // unit) * unit)) + 1, unit):
        tiles = -(-total // tile)
        busiest = min(-(-tiles // parts) * tile, total)
        cost = busiest * (1.0 + 0.15 * (64 / tile))  # a small tile reads the panels more often
        if cost <= best_cost:
            best, best_cost = tile, cost
    return best


@cache
def k_block(n_in: int, unit: int) -> int:
    """Columns decoded at a time: about K_BLOCK, a multiple of `unit`, dividing the row evenly."""
    pieces = max(1, round(n_in / K_BLOCK))
    return -(-n_in // pieces // unit) * unit


class Scratch:
    """Per-thread tiles of the two drivers, allocated once and grown when needed: `w`, `c`
    [threads, size].
    """

    def __init__(self) -> None:
        self.w = np.empty((0, 0), np.float32)
        self.c = np.empty((0, 0), np.float32)

    def get(self, threads: int, w_size: int, c_size: int) -> tuple[np.ndarray, np.ndarray]:
        if self.w.shape[0] < threads or self.w.shape[1] < w_size:
            self.w = np.empty((threads, max(w_size, self.w.shape[1])), np.float32)
        if self.c.shape[0] < threads or self.c.shape[1] < c_size:
            self.c = np.empty((threads, max(c_size, self.c.shape[1])), np.float32)
        return self.w, self.c


SCRATCH = Scratch()


def scratch_bytes() -> int:
    """Most bytes a thread's tiles can take, for the memory forecast."""
    widest = max(TILE_COLUMNS, 256)
    w = max((TILE + ROWS) * (K_BLOCK + 128 + PAD), ROW_BLOCK * (widest + PAD) + PAD)
    return 4 * (w + (widest + ROWS) * CHUNK)


NO_PANELS = np.empty((0, 0, PANEL), np.float32)
NO_PAIR = np.empty((0, 0), np.float32)


def n_panels(n: int) -> int:
    """Panels that hold `n` tokens."""
    return -(-n // PANEL)


def panels_of(x: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """The start of float32 `memory` as panels `[n_panels(N), K, PANEL]` for x `[N, K]`."""
    if np.ndim(x) != 2:
        raise ValueError(f"pack: x has shape {np.shape(x)}, wanted [N, K]")
    check_array("pack", "x", x, x.shape)
    n, k = x.shape
    if memory.dtype != np.float32 or memory.size < n_panels(n) * k * PANEL:
        raise ValueError(f"pack: {memory.size} numbers of memory are too few for x {x.shape}")
    return memory.reshape(-1)[: n_panels(n) * k * PANEL].reshape(n_panels(n), k, PANEL)


def pack(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Pack x float32 `[N, K]` into the start of `out`; returns the panels."""
    xp = panels_of(x, out)
    _pack(readonly(x), len(x), xp)
    return xp


def _check(w: Weight, panels: np.ndarray, k: int, y: np.ndarray, n_y: int) -> int:
    n = y.shape[0]
    if panels.shape[1:] != (k, PANEL) or panels.shape[0] != n_panels(n) or y.shape != (n, n_y):
        raise ValueError(
            f"{w.name}: panels {panels.shape} and output {y.shape} do not fit a weight {w.shape}"
        )
    if w.raw.size != w.shape[0] * w.row_bytes or w.shape[1] % QUANTS[w.type_id].block_size:
        raise ValueError(f"{w.name}: {w.raw.size} bytes do not hold a matrix {w.shape}")
    check_output(w.name, "output", y, y.shape)
    check_array(w.name, "panels", panels, panels.shape)
    return n


def _check_pair(w: Weight, panels: np.ndarray, n: int, rank: int, half: np.ndarray) -> None:
    check_array(w.name, "LoRA panels", panels, panels.shape)
    check_array(w.name, "LoRA factor", half, half.shape)
    if rank and (panels.shape[0] != n_panels(n) or panels.shape[1] < rank):
        raise ValueError(f"{w.name}: LoRA panels {panels.shape} do not fit {n} tokens, rank {rank}")


def matmul(
    w: Weight,
    xp: np.ndarray,
    y: np.ndarray,
    *,
    hp: np.ndarray = NO_PANELS,
    b: np.ndarray = NO_PAIR,
    add: bool = False,
) -> None:
    """y `[N, n_out]` = (or += with `add`) X Wᵀ + H Bᵀ; xp is X packed, hp is s X Aᵀ packed, b
    `[n_out, R]`.
    """
    n_out, n_in = w.shape
    n = _check(w, xp, n_in, y, n_out)
    rank = b.shape[1]
    _check_pair(w, hp, n, rank, b)
    if rank and b.shape[0] != n_out:
        raise ValueError(f"{w.name}: lora_b has {b.shape[0]} rows, the weight has {n_out}")
    threads = get_num_threads()
    tile = split(n_out, ROWS, TILE, threads)
    kb = k_block(n_in, QUANTS[w.type_id].block_size)
    height = -(-tile // ROWS) * ROWS
    ws, cs = SCRATCH.get(
        threads, height * (max(kb, ROW_BLOCK) + PAD), height * min(CHUNK, xp.shape[0] * PANEL)
    )
    forward_entry(w.type_id)(
        w.raw, w.row_bytes, n_out, n_in, readonly(xp), n, readonly(hp), readonly(b), rank,
        y, add, tile, kb, ws, cs,
    )  # fmt: skip


def matmul_grad(
    w: Weight,
    gp: np.ndarray,
    dx: np.ndarray,
    *,
    dhp: np.ndarray = NO_PANELS,
    a: np.ndarray = NO_PAIR,
    add: bool = False,
) -> None:
    """dx `[N, n_in]` = (or += with `add`) dY W + dH A; gp is dY packed, dhp is s dY B packed, a
    `[R, n_in]`.
    """
    n_out, n_in = w.shape
    n = _check(w, gp, n_out, dx, n_in)
    rank = a.shape[0]
    _check_pair(w, dhp, n, rank, a)
    if rank and a.shape[1] != n_in:
        raise ValueError(f"{w.name}: lora_a has {a.shape[1]} columns, the weight has {n_in}")
    threads = get_num_threads()
    tile = split(n_in, QUANTS[w.type_id].block_size, TILE_COLUMNS, threads)
    height = -(-tile // ROWS) * ROWS
    ws, cs = SCRATCH.get(
        threads, ROW_BLOCK * (tile + PAD) + PAD, height * min(CHUNK, gp.shape[0] * PANEL)
    )
    gradient_entry(w.type_id)(
        w.raw, w.row_bytes, n_out, n_in, readonly(gp), n, readonly(dhp), readonly(a), rank,
        dx, add, tile, ws, cs,
    )  # fmt: skip
