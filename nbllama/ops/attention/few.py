"""Attention of a few queries over many keys, for token-by-token generation.

The formula is the same as in `nbllama.ops.attention`, but with so few queries, the blocks used in
that module would be mostly padding. Nothing is packed: keys are read directly from the cache. A
task processes one query, one KV head with its group of query heads, and a chunk c of `CHUNK` keys.
It computes the largest score m_c, the sum of exponentials l_c, and the weighted sum of values o_c.
The chunks are then combined in ascending order:

    m = max_c m_c     l = sum_c l_c exp(m_c - m)     o = sum_c o_c exp(m_c - m) / l

Chunk boundaries depend only on the key position, so the result is bit-identical for any number of
threads.

Source: Dao et al., "FlashAttention" (2022), section 3.1, for combining blocks; "Flash-Decoding"
(2023), for splitting the keys into one chunk per task. llama.cpp: `ggml_flash_attn_ext` with one
query.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import next_task, row_max
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.turns import in_turn
from nbllama.ops.attention.tiles import cap_and_bias, exp_sum
from nbllama.ops.op import readonly

CHUNK = 256  # keys per task
SERIAL = 500_000  # multiplications (about 60 us) up to which one thread is faster than two
MOST_QUERIES = 4  # number of queries up to which `attention` uses this module


# Flat arrays and unsigned indices are used because slicing for each key would take longer than the
# dot product.
@kernel(fast=True)
def _score_row(q, q0, k, k0, step, d, scale, row, n):
    """Compute row[j] = scale * sum_c q[q0 + c] k[k0 + j*step + c] for j < n."""
    for j in range(n):
        total = np.float32(0.0)
        for c in range(d):
            total += q[np.uint64(q0 + c)] * k[np.uint64(k0 + j * step + c)]
        row[np.uint64(j)] = scale * total


@kernel(fast=True)
def _weigh(p, n, v, v0, step, o, o0, d):
    """Compute o[o0 + c] = sum over j < n of p[j] v[v0 + j*step + c]."""
    for c in range(d):
        o[np.uint64(o0 + c)] = np.float32(0.0)
    whole = n // 4 * 4
    for j in range(0, whole, 4):
        a, at = np.uint64(j), v0 + j * step
        for c in range(d):
            o[np.uint64(o0 + c)] += (
                p[a] * v[np.uint64(at + c)]
                + p[a + np.uint64(1)] * v[np.uint64(at + step + c)]
                + p[a + np.uint64(2)] * v[np.uint64(at + 2 * step + c)]
                + p[a + np.uint64(3)] * v[np.uint64(at + 3 * step + c)]
            )
    for j in range(whole, n):
        for c in range(d):
            o[np.uint64(o0 + c)] += p[np.uint64(j)] * v[np.uint64(v0 + j * step + c)]


@kernel()
def attend_chunk(q, q0, k, v, g, lo, hi, at, scale, slopes, cap, scores, found):
    """Attend to the keys lo <= j < hi of KV head g, for a query at key position `at`.

    Writes m_c, l_c and o_c for each head in the group to found `[H, 2 + D]`. The query `[H, D]`
    begins at element q0 of the flat array q, and k and v are `[Nk, G, D]`.
    """
    n_kv, d, n = k.shape[1], k.shape[2], hi - lo
    group = found.shape[0] // n_kv
    first = (lo * n_kv + g) * d
    keys, values = k.reshape(-1), v.reshape(-1)
    for h in range(g * group, (g + 1) * group):
        out, row = found[h], scores[h]
        _score_row(q, q0 + h * d, keys, first, n_kv * d, d, scale, row, n)
        cap_and_bias(row, 0, n, cap, slopes[h], at - lo)
        top = row_max(row, 0, n)
        out[0] = top
        out[1] = exp_sum(row, 0, n, top)
        _weigh(row, n, values, first, n_kv * d, out, 2, d)


@kernel()
def join_chunks(found, first, last, o):
    """Combine chunks first to last - 1 for one query and head; return the lse.

    The chunks' results are in found `[C, 2 + D]`, and the output is written to o `[D]`.
    """
    top = found[first, 0]
    for c in range(first, last):
        top = max(top, found[c, 0])
    total = np.float32(0.0)
    o[:] = np.float32(0.0)
    for c in range(first, last):
        weight = np.float32(math.exp(found[c, 0] - top))
        total += weight * found[c, 1]
        for i in range(o.shape[0]):
            o[i] += weight * found[c, 2 + i]
    for i in range(o.shape[0]):
        o[i] /= total
    return top + np.float32(math.log(total))


@kernel()
def _task(task, q, k, v, scale, slopes, window, cap, scores, found):
    n, n_kv, chunks = q.shape[0], k.shape[1], found.shape[1]
    g = task % n_kv
    c = task // n_kv % chunks
    i = task // (n_kv * chunks)
    at = k.shape[0] - n + i
    lo = c * CHUNK
    if window > 0:
        lo = max(lo, at - window + 1)
    hi = min((c + 1) * CHUNK, at + 1)
    if lo < hi:
        q0 = i * q.shape[1] * q.shape[2]
        q = q.reshape(-1)
        attend_chunk(q, q0, k, v, g, lo, hi, at, scale, slopes, cap, scores[i, c], found[i, c])


@kernel()
def _join_all(past, window, found, o, lse):
    for i in range(o.shape[0]):
        at = past + i
        first = max(0, at - window + 1) // CHUNK if window > 0 else 0
        for h in range(o.shape[1]):
            lse[i, h] = join_chunks(found[i, :, h], first, at // CHUNK + 1, o[i, h])


@kernel()
def _serial(q, k, v, scale, slopes, window, cap, scores, found):
    for task in range(q.shape[0] * found.shape[1] * k.shape[1]):
        _task(task, q, k, v, scale, slopes, window, cap, scores, found)


@kernel(parallel=True)
def _parallel(q, k, v, scale, slopes, window, cap, scores, found, threads, counter):
    tasks = q.shape[0] * found.shape[1] * k.shape[1]
    counter[0] = 0
    for _ in prange(threads):
        task = next_task(counter)
        while task < tasks:
            _task(task, q, k, v, scale, slopes, window, cap, scores, found)
            task = next_task(counter)


_scores = np.empty(0, np.float32)
_found = np.empty(0, np.float32)
_counter = np.zeros(1, np.int64)


@in_turn
def attention_few(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: np.float32, slopes: np.ndarray,
    window: int, cap: np.float32, o: np.ndarray, lse: np.ndarray,
) -> None:  # fmt: skip
    """Compute `attention` for one sequence, given the queries q `[N, H, D]` of its last N tokens.

    The arrays are not checked here; the caller must check them.
    """
    global _scores, _found
    n, h, d = q.shape
    chunks = -(-len(k) // CHUNK)
    scores, found = (n, chunks, h, CHUNK), (n, chunks, h, 2 + d)
    sizes = math.prod(scores), math.prod(found)
    if _scores.size < sizes[0] or _found.size < sizes[1]:
        _scores, _found = np.empty(sizes[0], np.float32), np.empty(sizes[1], np.float32)
    partial = _found[: sizes[1]].reshape(found)
    args = (q, k, v, scale, slopes, window, cap, _scores[: sizes[0]].reshape(scores), partial)
    if h * d * len(k) * n <= SERIAL:
        _serial(*args)
    else:
        _parallel(*args, get_num_threads(), _counter)
    _join_all(len(k) - n, window, readonly(partial), o, lse)
