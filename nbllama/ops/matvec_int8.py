"""Y = X Wᵀ for one or a few tokens in integers: X in int8 blocks (`int8_rows`), W as it lies in the
file.

    y[t, n] = sum over blocks b of  d_w[n, b] d_x[t, b] (sum over k of c[n, k] q[t, k])

with the sum in brackets in whole numbers (`nbllama.quants.dot` has each type's formula). Up to
`MOST_WEIGHTS` matrices of one type share x and one launch (q, k, v; gate, up), and a small product
stays on one thread: starting the others takes longer. Tasks of `ROWS_PER_TASK` rows are drawn from
a counter; an output belongs to one task, so threads do not change bits.

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
SERIAL = 2_000_000  # up to so many products one thread ends before two have begun (about 60 us)


def matvec_int8_ref(rows: Int8Rows, w: np.ndarray) -> np.ndarray:
    """Plain numpy: the decoded w `[n_out, K]` times the numbers that the int8 blocks stand for."""
    block = rows.q.shape[1] // rows.d.shape[1]
    x = rows.q.astype(np.float64) * np.repeat(rows.d.astype(np.float64), block, axis=1)
    return x @ w.astype(np.float64).T


def _matvec_entries(type_id: int) -> tuple[Callable[..., None], Callable[..., None]]:
    block = QUANTS[type_id].block_size
    size = QUANTS[type_id].type_size

    # The two bodies are alike on purpose: an entry that calls a kernel made beside it is compiled
    # anew in every process (see ops.matmul_tiles).
    @kernel()
    def serial(raw0, raw1, raw2, q, d, sums, y0, y1, y2, add):
        blocks = q.size // y0.shape[0] // block
        raws, ys = (raw0, raw1, raw2), (y0, y1, y2)
        for s in range(MOST_WEIGHTS):
            raw, y = raws[s], ys[s]
            for n in range(y.shape[1]):
                src = n * blocks * size
                for t in range(y.shape[0]):
                    value = dot_blocks(type_id, raw, src, blocks, q, d, sums, t * blocks)
                    y[t, n] = y[t, n] + value if add else value

    @kernel(parallel=True)
    def parallel(raw0, raw1, raw2, q, d, sums, y0, y1, y2, add, threads, counter):
        blocks = q.size // y0.shape[0] // block
        raws, ys = (raw0, raw1, raw2), (y0, y1, y2)
        n_rows = y0.shape[1] + y1.shape[1] + y2.shape[1]
        counter[0] = 0
        for _ in prange(threads):
            first = next_task(counter) * ROWS_PER_TASK
            while first < n_rows:
                begin = 0
                for s in range(MOST_WEIGHTS):
                    raw, y = raws[s], ys[s]
                    n_out = y.shape[1]
                    end = min(first + ROWS_PER_TASK - begin, n_out)
                    for n in range(max(first - begin, 0), end):
                        src = n * blocks * size
                        for t in range(y.shape[0]):
                            value = dot_blocks(type_id, raw, src, blocks, q, d, sums, t * blocks)
                            y[t, n] = y[t, n] + value if add else value
                    begin += n_out
                first = next_task(counter) * ROWS_PER_TASK

    return serial, parallel


matvec_entries = cache(_matvec_entries)
_counter = np.zeros(1, np.int64)
_no_raw = readonly(np.empty(0, np.uint8))


class Int8Group:
    """One to three weights of one type and width, checked once: what a launch computes."""

    def __init__(self, ws: Sequence[Weight]) -> None:
        """Raises ValueError for weights that do not go together."""
        first = ws[0]
        self.n_in, self.block = first.shape[1], int8_block(first.type_id)
        if not self.block or len(ws) > MOST_WEIGHTS or self.n_in % self.block:
            raise ValueError(f"{first.name}: no int8 product of {len(ws)} weights {first.shape}")
        for w in ws:
            if w.type_id != first.type_id or w.shape[1] != self.n_in:
                raise ValueError(f"{w.name}: {w.shape} does not go with {first.name}")
            if w.raw.size != w.shape[0] * w.row_bytes:
                raise ValueError(f"{w.name}: {w.raw.size} bytes do not hold a matrix {w.shape}")
        self.names = tuple(w.name for w in ws)
        self.n_outs = tuple(w.shape[0] for w in ws)
        self._raws = [w.raw for w in ws] + [_no_raw] * (MOST_WEIGHTS - len(ws))
        self._products = self.n_in * sum(self.n_outs)
        self._serial, self._parallel = matvec_entries(first.type_id)

    def multiply(self, x: Int8Rows, ys: Sequence[np.ndarray], *, add: bool = False) -> None:
        """y `[N, n_out]` = (or += with `add`) x Wᵀ for each weight. Raises ValueError for arrays
        that do not fit.
        """
        name, n = self.names[0], len(x.q)
        sums = (self.block, np.float32) if self.block == 32 else (SUMMED, np.int16)
        check_array(name, "q", x.q, (n, self.n_in), np.int8)
        check_array(name, "d", x.d, (n, self.n_in // self.block))
        check_array(name, "sums", x.sums, (n, self.n_in // sums[0]), sums[1])
        if len(ys) != len(self.names):
            raise ValueError(f"{name}: {len(ys)} outputs for {len(self.names)} weights")
        for n_out, y in zip(self.n_outs, ys, strict=True):
            check_output(name, "y", y, (n, n_out))
        outs = list(ys)
        while len(outs) < MOST_WEIGHTS:
            outs.append(np.empty((n, 0), np.float32))
        # Flat: a row of a two-dimensional array would be counted as a reference by every thread.
        rows = (readonly(x.q.reshape(-1)), readonly(x.d.reshape(-1)), readonly(x.sums.reshape(-1)))
        if n * self._products <= SERIAL:
            self._serial(*self._raws, *rows, *outs, add)
        else:
            self._parallel(*self._raws, *rows, *outs, add, get_num_threads(), _counter)


def int8_groups(ws: Sequence[Weight]) -> dict[str, Int8Group]:
    """The group of each weight by its name, as few groups as possible; weights whose type has no
    integer product are left out.
    """
    found: dict[str, Int8Group] = {}
    for type_id in dict.fromkeys(w.type_id for w in ws if int8_block(w.type_id)):
        same = [w for w in ws if w.type_id == type_id]
        for i in range(0, len(same), MOST_WEIGHTS):
            group = Int8Group(same[i : i + MOST_WEIGHTS])
            found |= dict.fromkeys(group.names, group)
    return found


def matvec_int8(
    ws: Sequence[Weight], x: Int8Rows, ys: Sequence[np.ndarray], *, add: bool = False
) -> None:
    """y `[N, n_out]` = (or += with `add`) x Wᵀ for each of one to three weights of one type."""
    Int8Group(ws).multiply(x, ys, add=add)
