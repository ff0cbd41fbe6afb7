"""Packing, scores, scratch memory and checks for the forward pass and the gradient of attention.

The score rows `[BLOCK, ld]` for a block of `BLOCK` queries are all in memory at the same time. Each
row is complete, starting at the first visible panel of keys. Keys and values are packed once per KV
head, before the tasks that read them start. A task processes one block of queries for one head (in
the gradient, several consecutive blocks), and each kernel in this module runs inside a task. Tasks
are small enough for all threads to finish at about the same time, even with one sequence and three
KV heads.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS, VL
from nbllama.kernels.simd import exp_f32, fma_tile, transpose_tile
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.ops.op import check_array

BLOCK = 48  # queries whose score rows are in memory at the same time; a multiple of ROWS


@kernel()
def pack_transposed(x, t0, n, head, d, out):
    """Pack x into panels of tokens: out[p, c, j] = x[t0 + p*PANEL + j, head, c], padded with 0."""
    ld = x.shape[1] * d
    for p in range((n + PANEL - 1) // PANEL):
        have = min(PANEL, n - p * PANEL)
        whole = d // VL * VL if have == PANEL else 0
        for c in range(0, whole, VL):
            for j in range(0, PANEL, VL):
                at = (t0 + p * PANEL + j) * ld + head * d + c
                transpose_tile(x, at, ld, out, (p * d + c) * PANEL + j, PANEL)
        for j in range(have):
            row = x[t0 + p * PANEL + j, head]
            for c in range(whole, d):
                out[(p * d + c) * PANEL + j] = row[c]
        for j in range(have, PANEL):
            for c in range(d):
                out[(p * d + c) * PANEL + j] = np.float32(0.0)


@kernel()
def keys_at(k0, tk, seq, g, n_kv, d):
    """Return where the first panel of sequence `seq` and KV head g starts in the packed keys.

    The sequence has tk keys, starting at row k0.
    """
    return ((k0 + seq * PANEL) * n_kv + g * ((tk + PANEL - 1) // PANEL * PANEL)) * d


@kernel()
def pack_rows(x, t0, n, head, d, scale, out):
    """Pack x into panels of dimensions: out[p, t, j] = scale * x[t0 + t, head, p*PANEL + j]."""
    for p in range((d + PANEL - 1) // PANEL):
        have = min(PANEL, d - p * PANEL)
        for t in range(n):
            row = x[t0 + t, head]
            at = (p * n + t) * PANEL
            for j in range(have):
                out[at + j] = scale * row[p * PANEL + j]
            for j in range(have, PANEL):
                out[at + j] = np.float32(0.0)


@kernel()
def copy_block(x, t0, n, head, d, scale, out):
    """Write out[i, c] = scale * x[t0 + i, head, c] for i < n, and zeros up to BLOCK."""
    for i in range(n):
        row = x[t0 + i, head]
        for c in range(d):
            out[i * d + c] = scale * row[c]
    out[n * d : BLOCK * d] = np.float32(0.0)


@kernel()
def scores(rows, d, panels, first, last, past, n, s, ld):
    """Compute s[i, j - first] = rows[i] . column j of `panels`, for `first` <= j < `last`.

    The first visible panel is first//PANEL. Panels that are not visible to a group of ROWS rows are
    skipped.
    """
    for i in range(0, n, ROWS):
        end = min(last, past + i + ROWS)
        for j in range(first, end, PANEL):
            fma_tile(
                rows, i * d, d, 1, panels, j // PANEL * d * PANEL, PANEL, d,
                s, i * ld + j - first, ld, True,
            )  # fmt: skip


@kernel(fast=True)
def cap_and_bias(row, lo, hi, cap, slope, at):
    """Soft-cap the raw scores row[lo:hi], and add the ALiBi bias.

    Key j = 0 is `at` positions before the query.
    """
    if cap > 0:
        for j in range(lo, hi):
            e = exp_f32(np.float32(2.0) * row[j] / cap)
            row[j] = cap * (np.float32(1.0) - np.float32(2.0) / (e + np.float32(1.0)))
    if slope != 0:
        for j in range(lo, hi):
            row[j] += slope * np.float32(j - at)


@kernel(fast=True)
def exp_sum(row, lo, hi, top):
    """Set row[lo:hi] = exp(row - top) and the rest of the row to 0; return the sum."""
    total = np.float32(0.0)
    part = row[lo:hi]
    for j in range(part.shape[0]):
        e = exp_f32(part[j] - top)
        part[j] = e
        total += e
    row[:lo] = np.float32(0.0)
    row[hi:] = np.float32(0.0)
    return total


class Scratch:
    """Scratch memory for the attention kernels, kept between calls and enlarged when needed.

    It consists of `own` `[threads, floats]`, `common` `[floats]`, and the task counter.
    """

    def __init__(self) -> None:
        self.own = np.empty((0, 0), np.float32)
        self.common = np.empty(0, np.float32)
        self.counter = np.zeros(1, np.int64)

    def get(self, own: int, common: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `own`, `common` and the counter; the first two have at least the given sizes."""
        threads = get_num_threads()
        if self.own.shape[0] < threads or self.own.shape[1] < own:
            self.own = np.empty((threads, max(own, self.own.shape[1])), np.float32)
        if self.common.size < common:
            self.common = np.empty(common, np.float32)
        return self.own, self.common, self.counter


SCRATCH = Scratch()


def round_up(n: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least n."""
    return -(-n // unit) * unit


def check_streams(
    q: np.ndarray, kv: tuple[np.ndarray, ...], q_offsets: np.ndarray, k_offsets: np.ndarray
) -> None:
    """Raise ValueError unless q `[N, H, D]` and all arrays in `kv` `[Nk, G, D]` match the offsets.

    The offsets are int32.
    """
    if np.ndim(q) != 3 or np.ndim(kv[0]) != 3 or 0 in q.shape[1:] or 0 in kv[0].shape[1:]:
        raise ValueError(
            f"attention: q has shape {np.shape(q)}, expected [N, H, D], and k has shape "
            f"{np.shape(kv[0])}, expected [Nk, G, D]"
        )
    check_array("attention", "q", q, q.shape)
    if kv[0].shape[2] != q.shape[2] or q.shape[1] % kv[0].shape[1]:
        raise ValueError(
            f"attention: keys of shape {kv[0].shape} do not match queries of shape {q.shape}"
        )
    for x in kv:
        check_array("attention", "k or v", x, kv[0].shape)
    if np.ndim(q_offsets) != 1 or len(q_offsets) < 2:
        raise ValueError("attention: offsets must be int32 [S+1] with S at least 1")
    check_array("attention", "q_offsets", q_offsets, q_offsets.shape, dtype=np.int32)
    check_array("attention", "k_offsets", k_offsets, q_offsets.shape, dtype=np.int32)
    # Lists are faster than arrays, and this function runs for every block of every generated token.
    q_ends, k_ends = q_offsets.tolist(), k_offsets.tolist()
    for a, b, c, e in zip(q_ends, q_ends[1:], k_ends, k_ends[1:], strict=False):
        if b - a < 1 or e - c < b - a:
            raise ValueError(
                "attention: every sequence needs a query, and at least as many keys as queries"
            )
    if q_ends[0] or k_ends[0] or q_ends[-1] != len(q) or k_ends[-1] != len(kv[0]):
        raise ValueError("attention: offsets must start at 0 and end at the number of rows")
