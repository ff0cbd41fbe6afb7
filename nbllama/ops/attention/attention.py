"""Causal attention with grouped queries, ALiBi, a sliding window and a soft-cap.

The `[T, T]` matrix of scores is never stored.

For the query at key position i of a sequence, head h and KV head g = h // (n_head // n_head_kv):

    z[j]   = scale * q[i, h] . k[j, g]                       the raw score
    s[j]   = cap * tanh(z[j] / cap)   (cap > 0, else z[j])   + slope[h] * (j - i)
    p      = softmax of s over the visible keys  max(0, i - window + 1) <= j <= i
    o[i,h] = sum_j p[j] v[j, g]

Gradient, with delta = do . o:

    dv[j] += p[j] do          ds[j]  = p[j] (do . v[j] - delta)
                              dz[j]  = ds[j] (1 - tanh(z[j] / cap)^2)   (cap > 0, else ds[j])
    dq    += scale dz[j] k[j]         dk[j] += scale dz[j] q

The forward pass keeps only `lse = max + log(sum)` per query and head; the gradient recomputes p
from lse (Dao et al., "FlashAttention", 2022, section 3.1). Each task processes a block of `BLOCK`
queries for one head. It stores whole rows of scores, so its memory grows linearly with the sequence
length T, and the softmax needs no online rescaling. The mask is implemented by the loop bounds. The
tokens of S sequences are concatenated: q is `[N, H, D]`, and k and v are `[Nk, G, D]`.

llama.cpp: `ggml_soft_max_ext` and `ggml_mul_mat`; ALiBi: Press et al. 2021. finetune.cpp calls the
tensors t12 to t19. The kernels for the gradient are in `nbllama.ops.attention.grad`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import get_thread_id, prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.simd import fma_tile, next_task, row_max
from nbllama.kernels.turns import in_turn
from nbllama.ops.attention.few import MOST_QUERIES, attention_few
from nbllama.ops.attention.tiles import (
    BLOCK,
    SCRATCH,
    cap_and_bias,
    check_streams,
    copy_block,
    exp_sum,
    keys_at,
    pack_rows,
    pack_transposed,
    round_up,
    scores,
)
from nbllama.ops.op import check_array, check_output, readonly


def alibi_slopes(n_head: int, max_bias: float) -> np.ndarray:
    """Return each head's slope, float32 `[H]`, as in `ggml_soft_max_ext`.

    If `max_bias` is 0, all slopes are 0.
    """
    if max_bias <= 0:
        return np.zeros(n_head, np.float32)
    power = 2 ** math.floor(math.log2(n_head))
    m0, m1 = 2.0 ** (-max_bias / power), 2.0 ** (-max_bias / 2 / power)
    slopes = [m0 ** (h + 1) if h < power else m1 ** (2 * (h - power) + 1) for h in range(n_head)]
    return np.array(slopes, np.float32)


def probabilities(s: np.ndarray, sink: float = -np.inf) -> np.ndarray:
    """Compute the softmax of each row; `sink` is an extra score whose probability is dropped."""
    top = np.maximum(s.max(axis=1, keepdims=True), sink)
    e = np.exp(s - top)
    p: np.ndarray = e / (e.sum(axis=1, keepdims=True) + np.exp(sink - top))
    return p


def _scores(
    q: np.ndarray, k: np.ndarray, scale: float, slope: float, window: int, cap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return one head's scores and the soft-cap's tanh, both `[Tq, Tk]`, in plain numpy."""
    tq, tk = len(q), len(k)
    z = scale * q @ k.T
    t = np.tanh(z / cap) if cap > 0 else np.zeros_like(z)
    s = cap * t if cap > 0 else z
    i, j = np.arange(tq)[:, None] + tk - tq, np.arange(tk)[None, :]
    s = s + slope * (j - i)
    hidden = (j > i) | ((j <= i - window) if window > 0 else False)
    return np.where(hidden, -np.inf, s), t


def _probabilities(
    q: np.ndarray, k: np.ndarray, scale: float, slope: float, window: int, cap: float, sink: float
) -> tuple[np.ndarray, np.ndarray]:
    s, t = _scores(q, k, scale, slope, window, cap)
    return probabilities(s, sink), t


def _sinks(sinks: np.ndarray | None, heads: int) -> np.ndarray:
    return np.full(heads, -np.inf) if sinks is None else sinks


def attention_matrices(
    q: np.ndarray, k: np.ndarray, *, q_offsets: np.ndarray, k_offsets: np.ndarray,
    scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Compute the scores and probabilities `[H, N, Nk]` in plain numpy, in the dtype of q.

    The kernels never build these matrices. Later keys and keys in other sequences have score -inf
    and probability 0.
    """
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    z = np.full((heads, len(q), len(k)), -np.inf, q.dtype)
    sink = _sinks(sinks, heads)
    p = np.zeros_like(z)
    for s in range(len(q_offsets) - 1):
        qs, ks = slice(*q_offsets[s : s + 2]), slice(*k_offsets[s : s + 2])
        for h in range(heads):
            own, _ = _scores(q[qs, h], k[ks, h // group], scale, slopes[h], window, cap)
            z[h, qs, ks], p[h, qs, ks] = own, probabilities(own, sink[h])
    return z, p


def attention_ref(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, q_offsets: np.ndarray, k_offsets: np.ndarray,
    scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Compute o in plain numpy, in any float dtype; q is `[N, H, D]`, k and v are `[Nk, G, D]`."""
    o, sink = np.zeros_like(q), _sinks(sinks, q.shape[1])
    group = q.shape[1] // k.shape[1]
    for s in range(len(q_offsets) - 1):
        qs, ks = slice(*q_offsets[s : s + 2]), slice(*k_offsets[s : s + 2])
        for h in range(q.shape[1]):
            keys = k[ks, h // group]
            p, _ = _probabilities(q[qs, h], keys, scale, slopes[h], window, cap, sink[h])
            o[qs, h] = p @ v[ks, h // group]
    return o


def attention_grad_ref(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, offsets: np.ndarray,
    scale: float, slopes: np.ndarray, window: int = 0, cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Return the gradients (dq, dk, dv) of `attention_ref`.

    The queries and the keys must belong to the same tokens.
    """
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    sink = _sinks(sinks, q.shape[1])
    group = q.shape[1] // k.shape[1]
    for s in range(len(offsets) - 1):
        r = slice(*offsets[s : s + 2])
        for h in range(q.shape[1]):
            g = h // group
            p, t = _probabilities(q[r, h], k[r, g], scale, slopes[h], window, cap, sink[h])
            dp = do[r, h] @ v[r, g].T
            dz = p * (dp - (p * dp).sum(axis=1, keepdims=True))
            if cap > 0:
                dz = dz * (1 - t * t)
            dq[r, h] = scale * dz @ k[r, g]
            dk[r, g] += scale * dz.T @ q[r, h]
            dv[r, g] += p.T @ do[r, h]
    return dq, dk, dv


@kernel()
def _block(q, o, lse, h, t0, i0, n, past, scale, slope, window, cap, kp, vp, tk, mine):
    """Run one task: compute the outputs of head h for n queries, starting at t0 + i0."""
    d = q.shape[2]
    d_panels = (d + PANEL - 1) // PANEL
    wide = d_panels * PANEL
    here = past + i0
    last = here + n
    first = 0
    if window > 0:
        first = max(0, here - window + 1) // PANEL * PANEL
    ld = (last - first + PANEL - 1) // PANEL * PANEL + PANEL
    rows = mine[: BLOCK * d]
    tile = mine[BLOCK * d : BLOCK * (d + wide)]
    s = mine[BLOCK * (d + wide) :]
    copy_block(q, t0 + i0, n, h, d, scale, rows)
    scores(rows, d, kp, first, last, here, n, s, ld)
    for i in range(n):
        at = here + i - first
        lo = 0
        if window > 0:
            lo = max(0, at - window + 1)
        row = s[i * ld : (i + 1) * ld]
        cap_and_bias(row, lo, at + 1, cap, slope, at)
        top = row_max(row, lo, at + 1 - lo)
        total = exp_sum(row, lo, at + 1, top)
        row *= np.float32(1.0) / total
        lse[t0 + i0 + i, h] = top + np.float32(math.log(total))
    for i in range(0, n, ROWS):
        keys = min(last, here + i + ROWS) - first
        for p in range(d_panels):
            fma_tile(
                s, i * ld, ld, 1, vp, (p * tk + first) * PANEL, PANEL, keys,
                tile, i * wide + p * PANEL, wide, True,
            )  # fmt: skip
    for i in range(n):
        out = o[t0 + i0 + i, h]
        for c in range(d):
            out[c] = tile[i * wide + c]


@kernel(parallel=True)
def _forward(
    q, k, v, q_off, k_off, most, scale, slopes, window, cap, o, lse, work, common, counter
):
    n_kv = k.shape[1]
    n_head, d = q.shape[1:]
    wide = (d + PANEL - 1) // PANEL * PANEL
    n_seq = q_off.shape[0] - 1
    values = (k.shape[0] + n_seq * PANEL) * n_kv * d  # where the packed values start
    for pair in prange(n_seq * n_kv):
        seq, g = pair // n_kv, pair % n_kv
        k0, tk = k_off[seq], k_off[seq + 1] - k_off[seq]
        pack_transposed(k, k0, tk, g, d, common[keys_at(k0, tk, seq, g, n_kv, d) :])
        pack_rows(v, k0, tk, g, d, np.float32(1.0), common[values + (k0 * n_kv + g * tk) * wide :])
    blocks = (most + BLOCK - 1) // BLOCK
    counter[0] = 0
    for _ in prange(work.shape[0]):
        mine = work[get_thread_id()]
        task = next_task(counter)
        while task < n_seq * n_head * blocks:
            seq, h = task // blocks // n_head, task // blocks % n_head
            i0 = (blocks - 1 - task % blocks) * BLOCK  # start with the longest rows
            t0, tq = q_off[seq], q_off[seq + 1] - q_off[seq]
            k0, tk = k_off[seq], k_off[seq + 1] - k_off[seq]
            g = h // (n_head // n_kv)
            if i0 < tq:
                kp = common[keys_at(k0, tk, seq, g, n_kv, d) :]
                vp = common[values + (k0 * n_kv + g * tk) * wide :]
                _block(
                    q, o, lse, h, t0, i0, min(BLOCK, tq - i0), tk - tq, scale, slopes[h],
                    window, cap, kp, vp, tk, mine,
                )  # fmt: skip
            task = next_task(counter)


def forward_floats(longest: int, n: int, n_seq: int, *, n_kv: int, d: int) -> tuple[int, int]:
    """Return the sizes of the scratch memory per thread and of the shared memory, in floats.

    There are `n` keys in `n_seq` sequences of at most `longest` keys each.
    """
    wide = round_up(d, PANEL)
    own = BLOCK * (d + wide + round_up(longest, PANEL) + PANEL)
    return own, (n + n_seq * PANEL) * n_kv * d + n * n_kv * wide


@in_turn
def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, q_offsets: np.ndarray, k_offsets: np.ndarray,
    scale: float, slopes: np.ndarray, o: np.ndarray, lse: np.ndarray,
    window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Compute the attention of each sequence.

    Parameters
    ----------
    q : float32 array [N, H, D]
        Queries. If there are more keys than queries (a KV cache), the queries belong to the last
        tokens.
    k, v : float32 arrays [Nk, G, D]
        Keys and values; G divides H.
    q_offsets, k_offsets : int32 arrays [S + 1]
        Offsets at which the sequences begin, followed by the end of the last one.
    scale : float
        Factor for the raw scores.
    slopes : float32 array [H]
        ALiBi slopes; all zero for models without ALiBi.
    o, lse : float32 arrays [N, H, D] and [N, H]
        Overwritten with the outputs and with the log of the sum of exp(score).
    window, cap
        Sliding window and soft-cap (see the module docstring); 0 means none.
    """
    check_streams(q, (k, v), q_offsets, k_offsets)
    check_array("attention", "slopes", slopes, q.shape[1:2])
    check_output("attention", "o", o, q.shape)
    check_output("attention", "lse", lse, q.shape[:2])
    if len(q) <= MOST_QUERIES and len(q_offsets) == 2:
        attention_few(
            readonly(q), readonly(k), readonly(v), scale=np.float32(scale),
            slopes=readonly(slopes), window=window, cap=np.float32(cap), o=o, lse=lse,
        )  # fmt: skip
        return
    longest, most = int(np.diff(k_offsets).max()), int(np.diff(q_offsets).max())
    n_kv, d = k.shape[1:]
    scratch = SCRATCH.get(*forward_floats(longest, len(k), len(q_offsets) - 1, n_kv=n_kv, d=d))
    _forward(
        readonly(q), readonly(k), readonly(v), readonly(q_offsets), readonly(k_offsets), most,
        np.float32(scale), readonly(slopes), window, np.float32(cap), o, lse, *scratch,
    )  # fmt: skip
