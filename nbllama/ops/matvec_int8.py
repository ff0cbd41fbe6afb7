"""Y = X Wᵀ for one or a few tokens in integers: X in int8 blocks (`int8_rows`), W as it lies in the
file.

    y[t, n] = sum over blocks b of  d_w[n, b] d_x[t, b] (sum over k of c[n, k] q[t, k])

with the sum in brackets in whole numbers (`nbllama.quants.dot` has each type's formula). Up to
`MOST_WEIGHTS` matrices of one type share x and one launch (q, k, v; gate, up): starting the
threads costs as much as a small product. Tasks of `ROWS_PER_TASK` rows are drawn from a counter; an
output belongs to one task, so threads do not change bits.

llama.cpp: `ggml_vec_dot_*_q8_0`, `ggml_vec_dot_*_q8_K`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numba import get_num_threads, prange

from nbllama._jit import kernel
from nbllama.ops.int8_rows import Int8Rows
from nbllama.ops.matmul import Weight
from nbllama.ops.op import check_array, check_output, readonly
from nbllama.quants import QUANTS
from nbllama.quants.dot import SUMMED, dot_blocks, int8_block
from nbllama.simd import next_task

ROWS_PER_TASK = 32
MOST_WEIGHTS = 3


def matvec_int8_ref(rows: Int8Rows, w: np.ndarray) -> np.ndarray:
    """Plain numpy: the decoded w `[n_out, K]` times the numbers that the int8 blocks stand for."""
    block = rows.q.shape[1] // rows.d.shape[1]
    x = rows.q.astype(np.float64) * np.repeat(rows.d.astype(np.float64), block, axis=1)
    return x @ w.astype(np.float64).T


def _matvec_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    @kernel()
    def rows(raw, first, last, q, d, sums, y, add):
        blocks = q.size // y.shape[0] // block
        for n in range(first, last):
            for t in range(y.shape[0]):
                src = n * blocks * size
                value = dot_blocks(type_id, raw, src, blocks, q, d, sums, t * blocks)
                if add:
                    y[t, n] += value
                else:
                    y[t, n] = value

    @kernel(parallel=True)
    def matvec(raw0, raw1, raw2, q, d, sums, y0, y1, y2, add, threads, counter):
        end0 = y0.shape[1]
        end1 = end0 + y1.shape[1]
        end2 = end1 + y2.shape[1]
        counter[0] = 0
        for _ in prange(threads):
            first = next_task(counter) * ROWS_PER_TASK
            while first < end2:
                last = first + ROWS_PER_TASK
                rows(raw0, first, min(last, end0), q, d, sums, y0, add)
                rows(raw1, max(first - end0, 0), min(last, end1) - end0, q, d, sums, y1, add)
                rows(raw2, max(first - end1, 0), min(last, end2) - end1, q, d, sums, y2, add)
                first = next_task(counter) * ROWS_PER_TASK

    return matvec


matvec_entry = cache(_matvec_entry)
_counter = np.zeros(1, np.int64)
_no_raw = readonly(np.empty(0, np.uint8))


def matvec_int8(
    ws: Sequence[Weight], x: Int8Rows, ys: Sequence[np.ndarray], *, add: bool = False
) -> None:
    """y `[N, n_out]` = (or += with `add`) x Wᵀ for each of one to three weights of one type."""
    first = ws[0]
    n, n_in = x.q.shape
    block = int8_block(first.type_id)
    if not block or len(ws) > MOST_WEIGHTS or len(ys) != len(ws) or n_in % block:
        raise ValueError(f"{first.name}: no int8 product for {len(ws)} weights, x {x.q.shape}")
    check_array(first.name, "q", x.q, (n, n_in), np.int8)
    check_array(first.name, "d", x.d, (n, n_in // block))
    if block == 32:
        check_array(first.name, "sums", x.sums, (n, n_in // block))
    else:
        check_array(first.name, "sums", x.sums, (n, n_in // SUMMED), np.int16)
    for w, y in zip(ws, ys, strict=True):
        if w.type_id != first.type_id or w.shape[1] != n_in:
            raise ValueError(f"{w.name}: {w.shape} of another type or width than {first.name}")
        if w.raw.size != w.shape[0] * w.row_bytes:
            raise ValueError(f"{w.name}: {w.raw.size} bytes do not hold a matrix {w.shape}")
        check_output(w.name, "y", y, (n, w.shape[0]))
    missing = MOST_WEIGHTS - len(ws)
    raws = [w.raw for w in ws] + [_no_raw] * missing
    outs = [*ys, *[np.empty((n, 0), np.float32)] * missing]
    # Flat: a row of a two-dimensional array would be counted as a reference by every thread.
    q, d, sums = (readonly(a.reshape(-1)) for a in x)
    matvec_entry(first.type_id)(*raws, q, d, sums, *outs, add, get_num_threads(), _counter)
