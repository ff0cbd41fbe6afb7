"""Causal attention with grouped queries, ALiBi, a sliding window and a soft-cap; no [T, T] matrix
is kept.

For query i of a sequence (key position i + past), head h, KV head g = h // (n_head // n_head_kv):

    z[j]   = scale * q[i, h] . k[j, g]                       the raw score
    s[j]   = cap * tanh(z[j] / cap)   (cap > 0, else z[j])   + slope[h] * (j - i)
    p      = softmax of s over the visible keys  max(0, i - window + 1) <= j <= i
    o[i,h] = sum_j p[j] v[j, g]

Gradient, with delta = do . o:

    dv[j] += p[j] do          ds[j] = p[j] (do . v[j] - delta)        dz = ds * (1 - (z/cap)^2 of
    the tanh)
    dq    += scale * dz k     dk[j] += scale * dz[j] q

The forward pass keeps only `lse = max + log(sum)` per query and head; the gradient computes p again
from it (Dao et al., "FlashAttention", 2022, section 3.1). A task owns one KV head of one sequence.
Queries come in blocks of
`BLOCK`; a block's scores are whole rows, so the memory grows with T and no online rescaling is
needed. Masking is done by loop bounds. Shapes: N tokens in a stream of S sequences, q `[N, H, D]`,
k and v
`[Nk, G, D]`.

llama.cpp: `ggml_soft_max_ext` and `ggml_mul_mat`; ALiBi: Press et al. 2021. finetune.cpp: t13 ..
t17.
"""

from __future__ import annotations

import math

import numpy as np
from numba import get_num_threads, get_thread_id, prange

from nbllama._jit import kernel
from nbllama.simd import PANEL, ROWS, exp_f32, fma_tile, row_max

BLOCK = 48  # queries whose score rows are alive together; a multiple of ROWS


def alibi_slopes(n_head: int, max_bias: float) -> np.ndarray:
    """Slope of each head, float32 `[H]`; zeros where `max_bias` is 0 (llama.cpp:
    ggml_soft_max_ext).
    """
    if max_bias <= 0:
        return np.zeros(n_head, np.float32)
    power = 2 ** math.floor(math.log2(n_head))
    m0, m1 = 2.0 ** (-max_bias / power), 2.0 ** (-max_bias / 2 / power)
    slopes = [m0 ** (h + 1) if h < power else m1 ** (2 * (h - power) + 1) for h in range(n_head)]
    return np.array(slopes, np.float32)


def _probabilities(q, k, scale, slope, window, cap):  # type: ignore[no-untyped-def]
    """(p, tanh) `[Tq, Tk]` of one head in plain numpy, in the dtype of q."""
    tq, tk = len(q), len(k)
    z = scale * q @ k.T
    t = np.tanh(z / cap) if cap > 0 else np.zeros_like(z)
    s = cap * t if cap > 0 else z
    i, j = np.arange(tq)[:, None] + tk - tq, np.arange(tk)[None, :]
    s = s + slope * (j - i)
    hidden = (j > i) | ((j <= i - window) if window > 0 else False)
    s = np.where(hidden, -np.inf, s)
    e = np.exp(s - s.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True), t


def attention_ref(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, q_offsets: np.ndarray, k_offsets: np.ndarray,
    scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Plain numpy, any float dtype: q `[N, H, D]`, k, v `[Nk, G, D]` -> o `[N, H, D]`."""
    o = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for s in range(len(q_offsets) - 1):
        qs, ks = slice(*q_offsets[s : s + 2]), slice(*k_offsets[s : s + 2])
        for h in range(q.shape[1]):
            p, _ = _probabilities(q[qs, h], k[ks, h // group], scale, slopes[h], window, cap)
            o[qs, h] = p @ v[ks, h // group]
    return o


def attention_grad_ref(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray,
    scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(dq, dk, dv) of `attention_ref` where queries and keys are the same tokens."""
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    group = q.shape[1] // k.shape[1]
    for s in range(len(offsets) - 1):
        r = slice(*offsets[s : s + 2])
        for h in range(q.shape[1]):
            g = h // group
            p, t = _probabilities(q[r, h], k[r, g], scale, slopes[h], window, cap)
            dp = do[r, h] @ v[r, g].T
            dz = p * (dp - (p * dp).sum(axis=1, keepdims=True))
            if cap > 0:
                dz = dz * (1 - t * t)
            dq[r, h] = scale * dz @ k[r, g]
            dk[r, g] += scale * dz.T @ q[r, h]
            dv[r, g] += p.T @ do[r, h]
    return dq, dk, dv


@kernel()
def _pack_transposed(x, t0, n, head, d, out):
    """out[p, c, j] = x[t0 + p*PANEL + j, head, c]: panels over tokens, zeros past n."""
    for p in range((n + PANEL - 1) // PANEL):
        have = min(PANEL, n - p * PANEL)
        for j in range(have):
            row = x[t0 + p * PANEL + j, head]
            for c in range(d):
                out[(p * d + c) * PANEL + j] = row[c]
        for j in range(have, PANEL):
            for c in range(d):
                out[(p * d + c) * PANEL + j] = np.float32(0.0)


@kernel()
def _pack_rows(x, t0, n, head, d, scale, out):
    """out[p, t, j] = scale * x[t0 + t, head, p*PANEL + j]: panels over the head's dimensions."""
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
def _copy_block(x, t0, n, head, d, scale, out):
    """out[i, c] = scale * x[t0 + i, head, c] for i < n, zeros up to BLOCK."""
    for i in range(n):
        row = x[t0 + i, head]
        for c in range(d):
            out[i * d + c] = scale * row[c]
    out[n * d : BLOCK * d] = np.float32(0.0)


@kernel()
def _scores(rows, d, panels, first, last, past, n, s, ld):
    """s[i, first:] = rows[i] . column of `panels`, for the key panels first//PANEL .. of each
    row group.
    """
    s[: BLOCK * ld] = np.float32(0.0)
    for i in range(0, n, ROWS):
        end = min(last, past + i + ROWS)
        for j in range(first, end, PANEL):
            fma_tile(
                rows, i * d, d, 1, panels, j // PANEL * d * PANEL, PANEL, d,
                s, i * ld + j - first, ld,
            )  # fmt: skip


@kernel(fast=True)
def _cap_and_bias(row, lo, hi, cap, slope, at):
    """row[j] (j = 0 is key `at` positions before the query) becomes the soft-capped, biased
    score.
    """
    if cap > 0:
        for j in range(lo, hi):
            e = exp_f32(np.float32(2.0) * row[j] / cap)
            row[j] = cap * (np.float32(1.0) - np.float32(2.0) / (e + np.float32(1.0)))
    if slope != 0:
        for j in range(lo, hi):
            row[j] += slope * np.float32(j - at)


@kernel(fast=True)
def _exp_sum(row, lo, hi, top):
    """row[lo:hi] = exp(row - top), the rest of the row 0; returns the sum."""
    total = np.float32(0.0)
    part = row[lo:hi]
    for j in range(part.shape[0]):
        e = exp_f32(part[j] - top)
        part[j] = e
        total += e
    row[:lo] = np.float32(0.0)
    row[hi:] = np.float32(0.0)
    return total


@kernel(parallel=True)
def _forward(q, k, v, q_off, k_off, scale, slopes, window, cap, o, lse, work, sizes):
    n_kv = k.shape[1]
    group = q.shape[1] // n_kv
    d = q.shape[2]
    d_panels = (d + PANEL - 1) // PANEL
    wide = d_panels * PANEL
    one = np.float32(1.0)
    for task in prange((q_off.shape[0] - 1) * n_kv):
        seq = task // n_kv
        g = task % n_kv
        t0 = q_off[seq]
        tq = q_off[seq + 1] - t0
        k0 = k_off[seq]
        tk = k_off[seq + 1] - k0
        past = tk - tq
        mine = work[get_thread_id()]
        kp = mine[: sizes[0]]
        vp = mine[sizes[0] : sizes[1]]
        rows = mine[sizes[1] : sizes[2]]
        s = mine[sizes[2] : sizes[3]]
        tile = mine[sizes[3] : sizes[4]]
        _pack_transposed(k, k0, tk, g, d, kp)
        _pack_rows(v, k0, tk, g, d, one, vp)
        for h in range(g * group, (g + 1) * group):
            for i0 in range(0, tq, BLOCK):
                n = min(BLOCK, tq - i0)
                here = past + i0
                last = here + n
                first = 0
                if window > 0:
                    first = max(0, here - window + 1) // PANEL * PANEL
                ld = (last - first + PANEL - 1) // PANEL * PANEL + PANEL
                _copy_block(q, t0 + i0, n, h, d, scale, rows)
                _scores(rows, d, kp, first, last, here, n, s, ld)
                for i in range(n):
                    at = here + i - first
                    lo = 0
                    if window > 0:
                        lo = max(0, at - window + 1)
                    row = s[i * ld : (i + 1) * ld]
                    _cap_and_bias(row, lo, at + 1, cap, slopes[h], at)
                    top = row_max(row, lo, at + 1 - lo)
                    total = _exp_sum(row, lo, at + 1, top)
                    row *= one / total
                    lse[t0 + i0 + i, h] = top + np.float32(math.log(total))
                tile[: BLOCK * wide] = np.float32(0.0)
                for i in range(0, n, ROWS):
                    keys = min(last, here + i + ROWS) - first
                    for p in range(d_panels):
                        fma_tile(
                            s, i * ld, ld, 1, vp, (p * tk + first) * PANEL, PANEL, keys,
                            tile, i * wide + p * PANEL, wide,
                        )  # fmt: skip
                for i in range(n):
                    out = o[t0 + i0 + i, h]
                    for c in range(d):
                        out[c] = tile[i * wide + c]


@kernel(fast=True)
def _dot(a, b):
    total = np.float32(0.0)
    for c in range(a.shape[0]):
        total += a[c] * b[c]
    return total


@kernel(fast=True)
def _score_gradient(p, dp, z, lo, hi, lse, delta, cap, slope, at):
    """In place: p becomes the probabilities, dp the gradient of the raw scores; zeros outside
    lo..hi.
    """
    p[:lo] = np.float32(0.0)
    p[hi:] = np.float32(0.0)
    dp[:lo] = np.float32(0.0)
    dp[hi:] = np.float32(0.0)
    _cap_and_bias(p, lo, hi, cap, slope, at)
    pv = p[lo:hi]
    dv = dp[lo:hi]
    for j in range(pv.shape[0]):
        e = exp_f32(pv[j] - lse)
        pv[j] = e
        dv[j] = e * (dv[j] - delta)
    if cap > 0:
        for j in range(lo, hi):
            e = exp_f32(np.float32(2.0) * z[j] / cap)
            t = np.float32(1.0) - np.float32(2.0) / (e + np.float32(1.0))
            dp[j] *= np.float32(1.0) - t * t


@kernel()
def _add_transposed(s, ld, n, keys, rows, d_panels, out, wide, first):
    """out[first + j, :] += sum over the block's queries i of s[i, j] * rows[i, :] (rows in
    panels).
    """
    for j in range(0, keys, ROWS):
        for p in range(d_panels):
            fma_tile(
                s, j, 1, ld, rows, p * n * PANEL, PANEL, n,
                out, (first + j) * wide + p * PANEL, wide,
            )  # fmt: skip


@kernel(parallel=True)
def _gradient(do, q, k, v, o, lse, offsets, scale, slopes, window, cap, dq, dk, dv, work, sizes):
    n_kv = k.shape[1]
    group = q.shape[1] // n_kv
    d = q.shape[2]
    d_panels = (d + PANEL - 1) // PANEL
    wide = d_panels * PANEL
    one = np.float32(1.0)
    for task in prange((offsets.shape[0] - 1) * n_kv):
        seq = task // n_kv
        g = task % n_kv
        t0 = offsets[seq]
        tk = offsets[seq + 1] - t0
        mine = work[get_thread_id()]
        kp = mine[: sizes[0]]
        vp = mine[sizes[0] : sizes[1]]
        kr = mine[sizes[1] : sizes[2]]
        dk_h = mine[sizes[2] : sizes[3]]
        dv_h = mine[sizes[3] : sizes[4]]
        s = mine[sizes[4] : sizes[5]]
        ds = mine[sizes[5] : sizes[6]]
        z = mine[sizes[6] : sizes[7]]
        q_rows = mine[sizes[7] : sizes[8]]
        do_rows = mine[sizes[8] : sizes[9]]
        q_panels = mine[sizes[9] : sizes[10]]
        do_panels = mine[sizes[10] : sizes[11]]
        tile = mine[sizes[11] : sizes[12]]
        _pack_transposed(k, t0, tk, g, d, kp)
        _pack_transposed(v, t0, tk, g, d, vp)
        _pack_rows(k, t0, tk, g, d, one, kr)
        for h in range(g * group, (g + 1) * group):
            dk_h[:] = np.float32(0.0)
            dv_h[:] = np.float32(0.0)
            for i0 in range(0, tk, BLOCK):
                n = min(BLOCK, tk - i0)
                last = i0 + n
                first = 0
                if window > 0:
                    first = max(0, i0 - window + 1) // PANEL * PANEL
                ld = (last - first + PANEL - 1) // PANEL * PANEL + PANEL
                _copy_block(q, t0 + i0, n, h, d, scale, q_rows)
                _copy_block(do, t0 + i0, n, h, d, one, do_rows)
                _pack_rows(q, t0 + i0, n, h, d, scale, q_panels)
                _pack_rows(do, t0 + i0, n, h, d, one, do_panels)
                _scores(q_rows, d, kp, first, last, i0, n, s, ld)
                _scores(do_rows, d, vp, first, last, i0, n, ds, ld)
                for i in range(n):
                    t = t0 + i0 + i
                    at = i0 + i - first
                    lo = 0
                    if window > 0:
                        lo = max(0, at - window + 1)
                    row = s[i * ld : (i + 1) * ld]
                    if cap > 0:
                        z[:ld] = row
                    _score_gradient(
                        row, ds[i * ld : (i + 1) * ld], z, lo, at + 1, lse[t, h],
                        _dot(do[t, h], o[t, h]), cap, slopes[h], at,
                    )  # fmt: skip
                _add_transposed(s, ld, n, last - first, do_panels, d_panels, dv_h, wide, first)
                _add_transposed(ds, ld, n, last - first, q_panels, d_panels, dk_h, wide, first)
                tile[: BLOCK * wide] = np.float32(0.0)
                for i in range(0, n, ROWS):
                    keys = min(last, i0 + i + ROWS) - first
                    for p in range(d_panels):
                        fma_tile(
                            ds, i * ld, ld, 1, kr, (p * tk + first) * PANEL, PANEL, keys,
                            tile, i * wide + p * PANEL, wide,
                        )  # fmt: skip
                for i in range(n):
                    out = dq[t0 + i0 + i, h]
                    for c in range(d):
                        out[c] = scale * tile[i * wide + c]
            for t in range(tk):
                dk_row = dk[t0 + t, g]
                dv_row = dv[t0 + t, g]
                if h == g * group:
                    for c in range(d):
                        dk_row[c] = dk_h[t * wide + c]
                        dv_row[c] = dv_h[t * wide + c]
                else:
                    for c in range(d):
                        dk_row[c] += dk_h[t * wide + c]
                        dv_row[c] += dv_h[t * wide + c]


_work = np.empty((0, 0), np.float32)


def _workspace(pieces: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Per-thread scratch `[threads, sum(pieces)]`, kept between calls, and the ends of its
    pieces.
    """
    global _work
    sizes = np.cumsum(np.array(pieces, np.int64))
    threads = get_num_threads()
    if _work.shape[0] < threads or _work.shape[1] < sizes[-1]:
        _work = np.empty((threads, int(sizes[-1])), np.float32)
    return _work, sizes


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def forward_pieces(longest: int, d: int) -> list[int]:
    """Scratch floats a thread needs in `attention` for `longest` keys and head size `d`."""
    wide, keys = _up(d, PANEL), _up(longest, PANEL)
    return [keys * d, longest * wide, BLOCK * d, BLOCK * (keys + PANEL), BLOCK * wide]


def gradient_pieces(longest: int, d: int) -> list[int]:
    """The same for `attention_grad`."""
    wide, keys = _up(d, PANEL), _up(longest, PANEL)
    grads, score = (longest + ROWS) * wide, BLOCK * (keys + PANEL)
    block = [BLOCK * d] * 2 + [BLOCK * wide] * 3
    return [keys * d, keys * d, longest * wide, grads, grads, score, score, keys + PANEL, *block]


def _check(q: np.ndarray, kv: tuple[np.ndarray, ...], q_off: np.ndarray, k_off: np.ndarray) -> None:
    h, d = q.shape[1:]
    for x in kv:
        if x.ndim != 3 or x.shape[2] != d or h % x.shape[1] or x.shape != kv[0].shape:
            raise ValueError(f"attention: keys or values {x.shape} do not fit queries {q.shape}")
    for x in (q, *kv):
        if x.dtype != np.float32 or not x.flags.c_contiguous:
            raise ValueError("attention: operands must be contiguous float32")
    tq, tk = np.diff(q_off), np.diff(k_off)
    if len(tq) != len(tk) or (tq < 1).any() or (tk < tq).any():
        raise ValueError("attention: every sequence needs queries and at least as many keys")
    if q_off[0] or k_off[0] or q_off[-1] != q.shape[0] or k_off[-1] != kv[0].shape[0]:
        raise ValueError("attention: offsets do not cover the stream")


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, q_offsets: np.ndarray, k_offsets: np.ndarray,
    scale: float, slopes: np.ndarray, o: np.ndarray, lse: np.ndarray,
    window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Attention of each sequence into `o` `[N, H, D]`, `lse` `[N, H]`; offsets int32 `[S+1]`,
    slopes `[H]`.

    Keys may be longer than queries (a KV cache): the queries are then the last ones.
    """
    _check(q, (k, v), q_offsets, k_offsets)
    work, sizes = _workspace(forward_pieces(int(np.diff(k_offsets).max()), q.shape[2]))
    _forward(
        q, k, v, q_offsets, k_offsets, np.float32(scale), slopes, window, np.float32(cap),
        o, lse, work, sizes,
    )  # fmt: skip


def attention_grad(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, lse: np.ndarray,
    offsets: np.ndarray, scale: float, slopes: np.ndarray,
    dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Gradients into dq `[N, H, D]`, dk, dv `[N, G, D]` (overwritten); o and lse are what the
    forward pass gave.
    """
    _check(q, (k, v, dk, dv), offsets, offsets)
    work, sizes = _workspace(gradient_pieces(int(np.diff(offsets).max()), q.shape[2]))
    _gradient(
        do, q, k, v, o, lse, offsets, np.float32(scale), slopes, window, np.float32(cap),
        dq, dk, dv, work, sizes,
    )  # fmt: skip
