"""Attention of a few queries over many keys: the form that generation takes, token by token.

The formula is that of `nbllama.ops.attention`, whose blocks of queries would be mostly padding
here. Nothing is packed: a key is read once, where it lies in the cache. A task owns one query, one
KV head with its group of query heads, and `CHUNK` keys; with m, l, o the largest score, the sum of
exponentials and the sum of values of one chunk, chunks are joined by

    m = max_c m_c     l = sum_c l_c exp(m_c - m)     o = sum_c o_c exp(m_c - m) / l

in ascending order. Chunks are cut by key position, so threads do not change bits.

Source: Dao et al., "FlashAttention" (2022), section 3.1, the joining of blocks; "Flash-Decoding"
(2023), chunks of keys as tasks. llama.cpp: `ggml_flash_attn_ext` with one query.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from nbllama._jit import kernel
from nbllama.ops.attention_tiles import cap_and_bias, exp_sum
from nbllama.simd import row_max

CHUNK = 256
MOST_QUERIES = 4


@kernel(fast=True)
def _score_row(q, q0, k, k0, step, d, scale, row, n):  # type: ignore[no-untyped-def]
    """row[j] = scale * sum_c q[q0 + c] k[k0 + j*step + c] for j < n; flat arrays."""
    a = q[q0 : q0 + d]
    for j in range(n):
        b = k[k0 + j * step : k0 + j * step + d]
        total = np.float32(0.0)
        for c in range(d):
            total += a[c] * b[c]
        row[j] = scale * total


@kernel(fast=True)
def _weigh(p, n, v, v0, step, o):  # type: ignore[no-untyped-def]
    """o[c] = sum over j < n of p[j] v[v0 + j*step + c]; v flat."""
    d = o.shape[0]
    o[:] = np.float32(0.0)
    for j in range(n):
        b = v[v0 + j * step : v0 + j * step + d]
        for c in range(d):
            o[c] += p[j] * b[c]


@kernel()
def _chunk(q, q0, k, v, g, lo, hi, at, scale, slopes, cap, scores, found):  # type: ignore[no-untyped-def]
    """Keys lo <= j < hi of KV head g for a query at key position `at`: m, l and o of each head of
    the group into found `[H, 2 + D]`. The query `[H, D]` begins at q0 of q; k and v `[Nk, G, D]`.
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
        _weigh(row, n, values, first, n_kv * d, out[2:])


@kernel()
def _join(found, first, last, o):  # type: ignore[no-untyped-def]
    """The chunks first <= c < last of one query and head, found `[C, 2 + D]`, into o `[D]`;
    returns its lse.
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


@kernel(parallel=True)
def _few(q, k, v, scale, slopes, window, cap, o, lse, scores, found):  # type: ignore[no-untyped-def]
    n = q.shape[0]
    n_kv = k.shape[1]
    past = k.shape[0] - n
    chunks = found.shape[1]
    flat, width = q.reshape(-1), q.shape[1] * q.shape[2]
    for task in prange(n * chunks * n_kv):
        g = task % n_kv
        c = task // n_kv % chunks
        i = task // (n_kv * chunks)
        at = past + i
        lo = c * CHUNK
        if window > 0:
            lo = max(lo, at - window + 1)
        hi = min((c + 1) * CHUNK, at + 1)
        if lo < hi:
            _chunk(
                flat, i * width, k, v, g, lo, hi, at, scale, slopes, cap, scores[i, c], found[i, c]
            )
    for i in range(n):
        at = past + i
        first = max(0, at - window + 1) // CHUNK if window > 0 else 0
        for h in range(q.shape[1]):
            lse[i, h] = _join(found[i, :, h], first, at // CHUNK + 1, o[i, h])


_scores = np.empty(0, np.float32)
_found = np.empty(0, np.float32)


def attention_few(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: np.float32, slopes: np.ndarray,
    window: int, cap: np.float32, o: np.ndarray, lse: np.ndarray,
) -> None:  # fmt: skip
    """`attention` of one sequence, q `[N, H, D]` its last N tokens; the caller has checked the
    arrays.
    """
    global _scores, _found
    n, h, d = q.shape
    chunks = -(-len(k) // CHUNK)
    scores, found = (n, chunks, h, CHUNK), (n, chunks, h, 2 + d)
    sizes = math.prod(scores), math.prod(found)
    if _scores.size < sizes[0] or _found.size < sizes[1]:
        _scores, _found = np.empty(sizes[0], np.float32), np.empty(sizes[1], np.float32)
    _few(
        q, k, v, scale, slopes, window, cap, o, lse,
        _scores[: sizes[0]].reshape(scores), _found[: sizes[1]].reshape(found),
    )  # fmt: skip
