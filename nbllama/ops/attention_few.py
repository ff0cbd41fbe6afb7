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
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for c in range(a.shape[0]):
        total += a[c] * b[c]
    return total


@kernel(fast=True)
def _add_scaled(o, p, v):  # type: ignore[no-untyped-def]
    for c in range(o.shape[0]):
        o[c] += p * v[c]


@kernel()
def _chunk(q, k, v, g, lo, hi, at, scale, slopes, cap, scores, found):  # type: ignore[no-untyped-def]
    """Keys lo <= j < hi of KV head g for a query at key position `at`, q `[H, D]`: m, l and o of
    each head of the group into found `[H, 2 + D]`.
    """
    group = q.shape[0] // k.shape[1]
    for h in range(g * group, (g + 1) * group):
        out = found[h]
        row = scores[h]
        for j in range(lo, hi):
            row[j - lo] = scale * _dot(q[h], k[j, g])
        n = hi - lo
        cap_and_bias(row, 0, n, cap, slopes[h], at - lo)
        top = row_max(row, 0, n)
        out[0] = top
        out[1] = exp_sum(row, 0, n, top)
        out[2:] = np.float32(0.0)
        for j in range(lo, hi):
            _add_scaled(out[2:], row[j - lo], v[j, g])


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
        _add_scaled(o, weight, found[c, 2:])
    for i in range(o.shape[0]):
        o[i] /= total
    return top + np.float32(math.log(total))


@kernel(parallel=True)
def _few(q, k, v, scale, slopes, window, cap, o, lse, scores, found):  # type: ignore[no-untyped-def]
    n = q.shape[0]
    n_kv = k.shape[1]
    past = k.shape[0] - n
    chunks = found.shape[1]
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
            _chunk(q[i], k, v, g, lo, hi, at, scale, slopes, cap, scores[i, c], found[i, c])
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
