"""Quantised matrix product: Y = X Wᵀ (+ H Bᵀ), and its gradient dX = dY W (+ dH A).

W stays in its GGUF type. One tile at a time is decoded into a scratch array that stays in the
cache, and the micro-kernel (`nbllama.kernels.simd.fma_tile`) multiplies the tile by all tokens in a
chunk.

    forward     Y[t, n]  = sum_k X[t, k] W[n, k]
    gradient    dX[t, k] = sum_n dY[t, n] W[n, k]

A task of the forward product processes `tile` rows n of W and a chunk of tokens. A task of the
gradient product processes `tile` columns k of W and a chunk of tokens.

The second operand is *packed* once into panels of `PANEL` neighbouring tokens,
`xp[p, k, j] = x[p*PANEL + j, k]`. The micro-kernel's vectors thus run over tokens in both the
forward and the backward pass, and one packed input serves q, k and v. The low-rank product of a
LoRA pair is computed in the same pass: h (or dh for the gradient, see `ops.linear.lora`) is stored
packed, and its product with B (or A) is added to the output tile before the tile is written.

Each output number is computed by a single task as a sum over k (or n) in ascending order, so it is
bit-identical for any tile size and any number of threads.

Source of the blocking: Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(2008). llama.cpp: `ggml_mul_mat`, and `ggml_out_prod` for the gradient. finetune.cpp calls the
tensors t05, t08, t11, t20, t25, t26, t29 and t34.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.turns import in_turn
from nbllama.ops.linear.panels import NO_PANELS, n_panels
from nbllama.ops.linear.tiles import PAD, ROW_BLOCK, forward_entry, gradient_entry
from nbllama.ops.op import check_array, check_output, readonly
from nbllama.quants import QUANTS

K_BLOCK = 256  # columns of W decoded at a time in the forward product
TILE = 96  # maximum number of rows of W per task in the forward product
COLUMNS = 288  # maximum number of columns of W per task in the gradient, in whole blocks
CHUNK = 384  # maximum number of tokens per task; the sums and the decoded part of W fit in L2


class Weight(NamedTuple):
    """An undecoded matrix of the base model.

    `raw` is a read-only uint8 array `[nbytes]`, and `shape` is (n_out, n_in).
    """

    name: str
    type_id: int
    raw: np.ndarray
    shape: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        """The number of bytes in one row."""
        q = QUANTS[self.type_id]
        return self.shape[1] // q.block_size * q.type_size


def matmul_ref(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return x Wᵀ `[N, n_out]` for x `[N, K]` and w `[n_out, K]`, computed in plain numpy."""
    return x @ w.T


def matmul_grad_ref(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (dX, dW) = (dY W, dYᵀ X). The kernels never compute dW, because the base is frozen."""
    return dy @ w, dy.T @ x


@cache
def split(total: int, unit: int, *, largest: int, chunks: int, threads: int) -> int:
    """Choose a tile size that divides the work evenly among the threads.

    The tile size is a multiple of `unit` up to about `largest`. Each of the `chunks` chunks of
    tokens has ceil(total / tile) tiles. The chosen size minimises the work of the busiest thread.
    If several sizes are equally good, the largest is chosen.
    """
    best, best_cost = 0, float("inf")
    for tile in range(unit, max(unit, min(largest, -(-total // unit) * unit)) + 1, unit):
        tasks = -(-total // tile) * chunks
        busiest = min(-(-tasks // threads) * tile, total * chunks)
        cost = busiest * (1.0 + 0.15 * (64 / tile))  # a small tile reads the panels more often
        if cost <= best_cost:
            best, best_cost = tile, cost
    return best


@cache
def k_block(n_in: int, unit: int) -> int:
    """Return the number of columns to decode at a time: a multiple of `unit` near K_BLOCK."""
    pieces = max(1, round(n_in / K_BLOCK))
    return -(-n_in // pieces // unit) * unit


@cache
def even(panels: int, largest: int) -> int:
    """Return the number of panels per chunk.

    `panels` is divided into chunks of about equal size, each of at most `largest` tokens.
    """
    return -(-panels // -(-panels * PANEL // largest))


class ThreadTiles:
    """Per-thread tiles for the forward product and the gradient, enlarged when needed.

    `w` contains the decoded parts of W, and `c` the sums; both are float32 `[threads, size]`.
    `counter` is the task counter.
    """

    def __init__(self) -> None:
        self.w = np.empty((0, 0), np.float32)
        self.c = np.empty((0, 0), np.float32)
        self.counter = np.zeros(1, np.int64)

    def get(self, threads: int, w_size: int, c_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `w` and `c` with at least `w_size` and `c_size` floats per thread."""
        if self.w.shape[0] < threads or self.w.shape[1] < w_size:
            self.w = np.empty((threads, max(w_size, self.w.shape[1])), np.float32)
        if self.c.shape[0] < threads or self.c.shape[1] < c_size:
            self.c = np.empty((threads, max(c_size, self.c.shape[1])), np.float32)
        return self.w, self.c


TILES = ThreadTiles()


def scratch_bytes() -> int:
    """Return an upper bound on the size of one thread's tiles in bytes, for the memory forecast."""
    widest = COLUMNS + ROWS
    w = max((TILE + ROWS) * (K_BLOCK + 128 + PAD), ROW_BLOCK * (widest + PAD) + PAD)
    return 4 * (w + widest * CHUNK)


NO_PAIR = np.empty((0, 0), np.float32)


def _check(w: Weight, panels: np.ndarray, k: int, y: np.ndarray, n_y: int) -> int:
    n = y.shape[0]
    if panels.shape[1:] != (k, PANEL) or panels.shape[0] != n_panels(n) or y.shape != (n, n_y):
        raise ValueError(
            f"{w.name}: mismatched shapes: panels {panels.shape}, output {y.shape}, W {w.shape}"
        )
    if w.raw.size != w.shape[0] * w.row_bytes or w.shape[1] % QUANTS[w.type_id].block_size:
        raise ValueError(f"{w.name}: {w.raw.size} bytes do not match a matrix of shape {w.shape}")
    check_output(w.name, "output", y, y.shape)
    check_array(w.name, "panels", panels, panels.shape)
    return n


def _check_pair(w: Weight, panels: np.ndarray, n: int, rank: int, half: np.ndarray) -> None:
    check_array(w.name, "LoRA panels", panels, panels.shape)
    check_array(w.name, "LoRA factor", half, half.shape)
    if rank and (panels.shape[0] != n_panels(n) or panels.shape[1] < rank):
        raise ValueError(
            f"{w.name}: LoRA panels of shape {panels.shape} do not fit {n} tokens and rank {rank}"
        )


def matmul(
    w: Weight,
    xp: np.ndarray,
    y: np.ndarray,
    *,
    hp: np.ndarray = NO_PANELS,
    b: np.ndarray = NO_PAIR,
    add: bool = False,
) -> None:
    """Write X Wᵀ + H Bᵀ to y `[N, n_out]`; with `add`, add it to y instead.

    xp is X packed, hp is H = s X Aᵀ packed, and b is `[n_out, R]`.
    """
    n = _check(w, xp, w.shape[1], y, w.shape[0])
    _forward(w, xp, n, y, NO_PANELS, hp, b, add)


def matmul_packed(
    w: Weight,
    xp: np.ndarray,
    yp: np.ndarray,
    *,
    hp: np.ndarray = NO_PANELS,
    b: np.ndarray = NO_PAIR,
) -> None:
    """Write X Wᵀ + H Bᵀ to yp `[P, n_out, PANEL]`, which is packed like xp `[P, n_in, PANEL]`."""
    check_output(w.name, "output", yp, (len(xp), w.shape[0], PANEL))
    no_rows = np.empty((len(xp) * PANEL, 0), np.float32)
    _check(w, xp, w.shape[1], no_rows, 0)
    _forward(w, xp, len(no_rows), no_rows, yp, hp, b, False)


@in_turn
def _forward(
    w: Weight, xp: np.ndarray, n: int, y: np.ndarray, yp: np.ndarray, hp: np.ndarray,
    b: np.ndarray, add: bool,
) -> None:  # fmt: skip
    (n_out, n_in), rank = w.shape, b.shape[1]
    _check_pair(w, hp, n, rank, b)
    if rank and b.shape[0] != n_out:
        raise ValueError(f"{w.name}: lora_b has {b.shape[0]} rows, but the weight has {n_out}")
    if n == 0:
        return
    threads, chunk = get_num_threads(), even(len(xp), CHUNK)
    tile = split(n_out, ROWS, largest=TILE, chunks=-(-len(xp) // chunk), threads=threads)
    kb = k_block(n_in, QUANTS[w.type_id].block_size)
    ws, cs = TILES.get(threads, tile * (max(kb, ROW_BLOCK) + PAD), tile * chunk * PANEL)
    forward_entry(w.type_id)(
        w.raw, w.row_bytes, n_out, n_in, readonly(xp), n, readonly(hp), readonly(b),
        y, yp, add, tile, chunk, kb, ws, cs, TILES.counter,
    )  # fmt: skip


@in_turn
def matmul_grad(
    w: Weight,
    gp: np.ndarray,
    dx: np.ndarray,
    *,
    dhp: np.ndarray = NO_PANELS,
    a: np.ndarray = NO_PAIR,
    add: bool = False,
) -> None:
    """Write dY W + dH A to dx `[N, n_in]`; with `add`, add it to dx instead.

    gp is dY packed, dhp is dH = s dY B packed, and a is `[R, n_in]`.
    """
    n_out, n_in = w.shape
    n = _check(w, gp, n_out, dx, n_in)
    rank = a.shape[0]
    _check_pair(w, dhp, n, rank, a)
    if rank and a.shape[1] != n_in:
        raise ValueError(f"{w.name}: lora_a has {a.shape[1]} columns, but the weight has {n_in}")
    if n == 0:
        return
    threads, chunk = get_num_threads(), even(len(gp), CHUNK)
    unit = QUANTS[w.type_id].block_size
    tile = split(n_in, unit, largest=COLUMNS, chunks=-(-len(gp) // chunk), threads=threads)
    height = -(-tile // ROWS) * ROWS
    ws, cs = TILES.get(threads, ROW_BLOCK * (tile + PAD) + PAD, height * chunk * PANEL)
    gradient_entry(w.type_id)(
        w.raw, w.row_bytes, n_out, n_in, readonly(gp), n, readonly(dhp), readonly(a),
        dx, add, tile, chunk, ws, cs, TILES.counter,
    )  # fmt: skip
