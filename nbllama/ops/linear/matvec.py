"""Y = X Wᵀ for one token or a few tokens, as in generation.

With so few tokens, packed panels would be mostly padding, so the tokens are not packed.

Each task decodes its rows of W one at a time into a scratch row and computes the dot product of the
row with each token. The order of summation depends only on the vector width, so the result is
bit-identical for any number of threads.

llama.cpp: `ggml_vec_dot_*`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import get_thread_id, prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.turns import in_turn
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.op import check_array, check_output, readonly
from nbllama.quants import QUANTS, decode_blocks

ROWS_PER_TASK = 32
MOST_TOKENS = 4  # for five or more tokens, the packed product is faster


@kernel(fast=True)
def _dot(a, b, n):
    total = np.float32(0.0)
    for k in range(n):
        total += a[k] * b[k]
    return total


def _matvec_entry(type_id: int) -> Callable[..., None]:
    block = QUANTS[type_id].block_size

    @kernel(parallel=True)
    def matvec(raw, row_bytes, n_out, n_in, x, y, add, scratch):
        for task in prange((n_out + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
            row = scratch[get_thread_id()]
            first = task * ROWS_PER_TASK
            for n in range(first, min(first + ROWS_PER_TASK, n_out)):
                decode_blocks(type_id, raw, n * row_bytes, n_in // block, row, 0)
                for t in range(x.shape[0]):
                    value = _dot(row, x[t], n_in)
                    if add:
                        y[t, n] += value
                    else:
                        y[t, n] = value

    return matvec


matvec_entry = cache(_matvec_entry)
_rows = np.empty((0, 0), np.float32)


@in_turn
def matvec(w: Weight, x: np.ndarray, y: np.ndarray, *, add: bool = False) -> None:
    """Write x Wᵀ to y `[N, n_out]`; with `add`, add it to y instead.

    x is float32 `[N, n_in]`, and N is small.
    """
    global _rows
    n_out, n_in = w.shape
    if x.shape[1] != n_in or y.shape != (x.shape[0], n_out):
        raise ValueError(f"{w.name}: mismatched shapes: x {x.shape}, y {y.shape}, W {w.shape}")
    check_array(w.name, "x", x, x.shape)
    check_output(w.name, "y", y, y.shape)
    if w.raw.size != n_out * w.row_bytes:
        raise ValueError(f"{w.name}: {w.raw.size} bytes do not match a matrix of shape {w.shape}")
    threads = get_num_threads()
    if _rows.shape[0] < threads or _rows.shape[1] < n_in:
        _rows = np.empty((threads, max(n_in, _rows.shape[1])), np.float32)
    matvec_entry(w.type_id)(w.raw, w.row_bytes, n_out, n_in, readonly(x), y, add, _rows)
