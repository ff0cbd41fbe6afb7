"""The kernels of `nbllama.ops.linear.matmul`, for the forward product and the gradient.

A task computes a tile of the output: `tile` rows (forward) or columns (gradient) of W times a chunk
of tokens. Its sums are stored in `c` `[tile, tokens in the chunk]`, which stays in the L2 cache.
The parts of W are decoded into `w` one by one, and each is multiplied by all panels in the chunk.
Threads draw tasks from a counter, so a slow core does not delay the others.

An entry function must not have another kernel in its closure. Otherwise, Numba's cache would treat
the entry function as new in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from numba import get_thread_id, prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS, VL
from nbllama.kernels.simd import fma_tile, next_task, transpose_add_tile, transpose_tile
from nbllama.quants import QUANTS, decode_blocks

ROW_BLOCK = 128  # rows of W decoded at a time in the gradient, and ranks of a LoRA pair per pass
PAD = 16  # floats; with a power-of-two stride, a tile's rows would compete for the same cache sets


@kernel()
def _multiply(w, w_row, w_k, rows, xp, first, p0, p1, k, c, fresh):
    """Multiply w `[rows, k]` by k rows of panels p0 to p1 - 1, starting at row `first`.

    The product is added to c or, with `fresh`, overwrites c. The columns of c are the tokens in the
    panels.
    """
    width = (p1 - p0) * PANEL
    for p in range(p0, p1):
        at = (p * xp.shape[1] + first) * PANEL
        for i in range(0, rows, ROWS):
            fma_tile(
                w, i * w_row, w_row, w_k, xp, at, PANEL, k,
                c, i * width + (p - p0) * PANEL, width, fresh,
            )  # fmt: skip


@kernel()
def _store(c, width, rows, have, y, t0, n0, add):
    """Transpose the finished tile and write or add it to y: y[t0 + t, n0 + i] (+)= c[i, t]."""
    ld = y.shape[1]
    square_t, square_i = have // VL * VL, rows // VL * VL
    for t in range(0, square_t, VL):
        at = (t0 + t) * ld + n0
        if add:
            for i in range(0, square_i, VL):
                transpose_add_tile(c, i * width + t, width, y, at + i, ld)
        else:
            for i in range(0, square_i, VL):
                transpose_tile(c, i * width + t, width, y, at + i, ld)
    for t in range(have):
        first = square_i if t < square_t else 0
        out = y[t0 + t, n0 : n0 + rows]
        for i in range(first, rows):
            out[i] = out[i] + c[i * width + t] if add else c[i * width + t]


@kernel()
def _store_panels(c, width, rows, yp, p0, n0):
    """Write the finished tile without transposing it: yp[p0 + p, n0 + i, j] = c[i, p*PANEL + j]."""
    for p in range(width // PANEL):
        for i in range(rows):
            for j in range(PANEL):
                yp[p0 + p, n0 + i, j] = c[i * width + p * PANEL + j]


def _forward_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    @kernel(parallel=True)
    def forward(
        raw, row_bytes, n_out, n_in, xp, n, hp, b, y, yp, add, rows, chunk, k_block, ws, cs, counter
    ):
        ld = max(k_block, ROW_BLOCK) + PAD
        n_tiles = (n_out + rows - 1) // rows
        n_tasks = n_tiles * ((xp.shape[0] + chunk - 1) // chunk)
        counter[0] = 0
        for _ in prange(ws.shape[0]):
            w = ws[get_thread_id()]
            c = cs[get_thread_id()]
            task = next_task(counter)
            while task < n_tasks:
                n0 = (task % n_tiles) * rows
                have = min(rows, n_out - n0)
                p0 = (task // n_tiles) * chunk
                p1 = min(p0 + chunk, xp.shape[0])
                for k0 in range(0, n_in, k_block):
                    k = min(k_block, n_in - k0)
                    for i in range(have):
                        src = (n0 + i) * row_bytes + k0 // block * size
                        decode_blocks(type_id, raw, src, k // block, w, i * ld)
                    _multiply(w, ld, 1, have, xp, k0, p0, p1, k, c, k0 == 0)
                for r0 in range(0, b.shape[1], ROW_BLOCK):
                    ranks = min(ROW_BLOCK, b.shape[1] - r0)
                    for i in range(have):
                        for r in range(ranks):
                            w[i * ld + r] = b[n0 + i, r0 + r]
                    _multiply(w, ld, 1, have, hp, r0, p0, p1, ranks, c, False)
                width, t0 = (p1 - p0) * PANEL, p0 * PANEL
                if yp.shape[0] > 0:
                    _store_panels(c, width, have, yp, p0, n0)
                else:
                    _store(c, width, have, min(width, n - t0), y, t0, n0, add)
                task = next_task(counter)

    return forward


def _gradient_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    @kernel(parallel=True)
    def gradient(
        raw, row_bytes, n_out, n_in, gp, n, dhp, a, dx, add, columns, chunk, ws, cs, counter
    ):
        ld = columns + PAD
        n_tiles = (n_in + columns - 1) // columns
        n_tasks = n_tiles * ((gp.shape[0] + chunk - 1) // chunk)
        counter[0] = 0
        for _ in prange(ws.shape[0]):
            w = ws[get_thread_id()]
            c = cs[get_thread_id()]
            task = next_task(counter)
            while task < n_tasks:
                k0 = (task % n_tiles) * columns
                have = min(columns, n_in - k0)
                p0 = (task // n_tiles) * chunk
                p1 = min(p0 + chunk, gp.shape[0])
                for n0 in range(0, n_out, ROW_BLOCK):
                    rows = min(ROW_BLOCK, n_out - n0)
                    for i in range(rows):
                        src = (n0 + i) * row_bytes + k0 // block * size
                        decode_blocks(type_id, raw, src, have // block, w, i * ld)
                    _multiply(w, 1, ld, have, gp, n0, p0, p1, rows, c, n0 == 0)
                for r0 in range(0, a.shape[0], ROW_BLOCK):
                    ranks = min(ROW_BLOCK, a.shape[0] - r0)
                    for r in range(ranks):
                        for i in range(have):
                            w[r * ld + i] = a[r0 + r, k0 + i]
                    _multiply(w, 1, ld, have, dhp, r0, p0, p1, ranks, c, False)
                width, t0 = (p1 - p0) * PANEL, p0 * PANEL
                _store(c, width, have, min(width, n - t0), dx, t0, k0, add)
                task = next_task(counter)

    return gradient


forward_entry = cache(_forward_entry)
gradient_entry = cache(_gradient_entry)
