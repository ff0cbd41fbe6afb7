"""The gradient of attention, which recomputes the probabilities from the saved `lse`.

Formulas, shapes and the plain-numpy reference are in `nbllama.ops.attention.attention`. A task
processes one head's queries in one sequence (or a part of these queries, if there are few heads)
and accumulates dk and dv in its own memory. At the end, dk and dv are summed over the parts and the
heads in ascending order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba import get_thread_id, prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.simd import exp_f32, fma_tile, next_task
from nbllama.kernels.turns import in_turn
from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention,
    attention_grad_ref,
    attention_ref,
)
from nbllama.ops.attention.tiles import (
    BLOCK,
    SCRATCH,
    cap_and_bias,
    check_streams,
    copy_block,
    keys_at,
    pack_rows,
    pack_transposed,
    round_up,
    scores,
)
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

PIECES = 8  # parts of a KV head's keys; each task sums one part of dk and dv over the query heads
TASKS = 24  # minimum number of tasks, so that threads finish at about the same time


@kernel(fast=True)
def _dot(a, b):
    total = np.float32(0.0)
    for c in range(a.shape[0]):
        total += a[c] * b[c]
    return total


@kernel(fast=True)
def _score_gradient(p, dp, z, lo, hi, lse, delta, cap, slope, at):
    """Turn p from scores into probabilities, and dp into the gradient of the raw scores.

    Outside lo..hi, both are set to 0.
    """
    p[:lo] = np.float32(0.0)
    p[hi:] = np.float32(0.0)
    dp[:lo] = np.float32(0.0)
    dp[hi:] = np.float32(0.0)
    cap_and_bias(p, lo, hi, cap, slope, at)
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
    """Compute out[first + j, :] += sum over the block's queries i of s[i, j] * rows[i, :].

    `rows` is stored in panels.
    """
    for j in range(0, keys, ROWS):
        for p in range(d_panels):
            fma_tile(
                s, j, 1, ld, rows, p * n * PANEL, PANEL, n,
                out, (first + j) * wide + p * PANEL, wide, False,
            )  # fmt: skip


@kernel()
def _block(
    do, q, o, lse, h, t0, i0, n, past, scale, slope, window, cap, kp, vp, kr, tk, dq, dk_h, dv_h,
    mine,
):  # fmt: skip
    """Compute dq for n queries of head h, starting at row t0 + i0.

    The contributions of these queries are added to dk_h and dv_h.
    """
    d = q.shape[2]
    d_panels = (d + PANEL - 1) // PANEL
    wide = d_panels * PANEL
    one = np.float32(1.0)
    here = past + i0
    last = here + n
    first = 0
    if window > 0:
        first = max(0, here - window + 1) // PANEL * PANEL
    ld = (last - first + PANEL - 1) // PANEL * PANEL + PANEL
    rows, panels = BLOCK * d, BLOCK * wide
    q_rows, do_rows = mine[:rows], mine[rows : 2 * rows]
    rest = mine[2 * rows :]
    q_panels, do_panels = rest[:panels], rest[panels : 2 * panels]
    tile, rest = rest[2 * panels : 3 * panels], rest[3 * panels :]
    s, ds, z = rest[: BLOCK * ld], rest[BLOCK * ld : 2 * BLOCK * ld], rest[2 * BLOCK * ld :]
    copy_block(q, t0 + i0, n, h, d, scale, q_rows)
    copy_block(do, t0 + i0, n, h, d, one, do_rows)
    pack_rows(q, t0 + i0, n, h, d, scale, q_panels)
    pack_rows(do, t0 + i0, n, h, d, one, do_panels)
    scores(q_rows, d, kp, first, last, here, n, s, ld)
    scores(do_rows, d, vp, first, last, here, n, ds, ld)
    for i in range(n):
        t = t0 + i0 + i
        at = here + i - first
        lo = 0
        if window > 0:
            lo = max(0, at - window + 1)
        row = s[i * ld : (i + 1) * ld]
        if cap > 0:
            z[:ld] = row
        _score_gradient(
            row, ds[i * ld : (i + 1) * ld], z, lo, at + 1, lse[t, h],
            _dot(do[t, h], o[t, h]), cap, slope, at,
        )  # fmt: skip
    _add_transposed(s, ld, n, last - first, do_panels, d_panels, dv_h, wide, first)
    _add_transposed(ds, ld, n, last - first, q_panels, d_panels, dk_h, wide, first)
    for i in range(0, n, ROWS):
        keys = min(last, here + i + ROWS) - first
        for p in range(d_panels):
            fma_tile(
                ds, i * ld, ld, 1, kr, (p * tk + first) * PANEL, PANEL, keys,
                tile, i * wide + p * PANEL, wide, True,
            )  # fmt: skip
    for i in range(n):
        out = dq[t0 + i0 + i, h]
        for c in range(d):
            out[c] = scale * tile[i * wide + c]


@kernel()
def _cut(blocks, part, parts):
    """Return the index of a part's first block, chosen so that all parts do about equal work.

    The work for the first n blocks grows with the square of n.
    """
    return np.int64(math.ceil(blocks * math.sqrt(part / parts)))


@kernel()
def _sum_heads(private, size, wide, heads, parts, tq, past, j, out):
    """Set out[c] to the sum of row j in `private` over all heads and parts, in ascending order."""
    blocks = (tq + BLOCK - 1) // BLOCK
    out[:] = np.float32(0.0)
    for h in range(heads):
        for part in range(parts):
            if past + _cut(blocks, part + 1, parts) * BLOCK > j:
                row = private[(h * parts + part) * 2 * size + j * wide :]
                for c in range(out.shape[0]):
                    out[c] += row[c]


@kernel(parallel=True)
def _gradient(
    do, q, k, v, o, lse, q_off, k_off, parts, scale, slopes, window, cap, dq, dk, dv,
    work, common, counter,
):  # fmt: skip
    n_kv = k.shape[1]
    n_head, d = q.shape[1:]
    group = n_head // n_kv
    wide = (d + PANEL - 1) // PANEL * PANEL
    n_seq = q_off.shape[0] - 1
    values = (k.shape[0] + n_seq * PANEL) * n_kv * d
    plain = 2 * values
    sums = plain + k.shape[0] * n_kv * wide
    for pair in prange(n_seq * n_kv):
        seq, g = pair // n_kv, pair % n_kv
        k0, tk = k_off[seq], k_off[seq + 1] - k_off[seq]
        at = keys_at(k0, tk, seq, g, n_kv, d)
        pack_transposed(k, k0, tk, g, d, common[at:])
        pack_transposed(v, k0, tk, g, d, common[values + at :])
        pack_rows(k, k0, tk, g, d, np.float32(1.0), common[plain + (k0 * n_kv + g * tk) * wide :])
    counter[0] = 0
    for _ in prange(work.shape[0]):
        mine = work[get_thread_id()]
        task = next_task(counter)
        while task < n_seq * n_head * parts:
            seq, h, part = task // parts // n_head, task // parts % n_head, task % parts
            t0, tq = q_off[seq], q_off[seq + 1] - q_off[seq]
            k0, tk = k_off[seq], k_off[seq + 1] - k_off[seq]
            past = tk - tq
            g = h // group
            at = keys_at(k0, tk, seq, g, n_kv, d)
            kr = common[plain + (k0 * n_kv + g * tk) * wide :]
            size = (tk + ROWS) * wide
            private = (
                sums + ((k0 + seq * ROWS) * n_head * wide * parts + (h * parts + part) * size) * 2
            )
            dk_h = common[private : private + size]
            dv_h = common[private + size : private + 2 * size]
            blocks = (tq + BLOCK - 1) // BLOCK
            first, last = _cut(blocks, part, parts), _cut(blocks, part + 1, parts)
            reach = past + min(last * BLOCK, tq) + ROWS
            dk_h[: reach * wide] = np.float32(0.0)
            dv_h[: reach * wide] = np.float32(0.0)
            for i0 in range(first * BLOCK, min(last * BLOCK, tq), BLOCK):
                _block(
                    do, q, o, lse, h, t0, i0, min(BLOCK, tq - i0), past, scale, slopes[h], window,
                    cap, common[at:], common[values + at :], kr, tk, dq, dk_h, dv_h, mine,
                )  # fmt: skip
            task = next_task(counter)
    for piece in prange(n_seq * n_kv * PIECES):
        pair = piece // PIECES
        seq, g = pair // n_kv, pair % n_kv
        tq = q_off[seq + 1] - q_off[seq]
        k0, tk = k_off[seq], k_off[seq + 1] - k_off[seq]
        size = (tk + ROWS) * wide
        private = sums + ((k0 + seq * ROWS) * n_head * wide + g * group * size) * parts * 2
        for j in range(tk * (piece % PIECES) // PIECES, tk * (piece % PIECES + 1) // PIECES):
            _sum_heads(common[private:], size, wide, group, parts, tq, tk - tq, j, dk[k0 + j, g])
            _sum_heads(
                common[private + size :], size, wide, group, parts, tq, tk - tq, j, dv[k0 + j, g]
            )


def n_parts(n_seq: int, n_head: int) -> int:
    """Return the number of tasks into which a head's queries are divided.

    The number determines the order of the sums, so it depends only on the shape, not on the number
    of threads.
    """
    return -(-TASKS // (n_seq * n_head))


def gradient_floats(
    longest: int, n: int, n_seq: int, *, n_head: int, n_kv: int, d: int
) -> tuple[int, int]:
    """Return the scratch sizes for `attention_grad`, in the same form as `forward_floats`."""
    wide, keys = round_up(d, PANEL), round_up(longest, PANEL) + PANEL
    own = BLOCK * (2 * d + 3 * wide + 2 * keys) + keys
    packed = 2 * (n + n_seq * PANEL) * n_kv * d + n * n_kv * wide
    return own, packed + 2 * (n + n_seq * ROWS) * n_head * wide * n_parts(n_seq, n_head)


@in_turn
def attention_grad(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, o: np.ndarray, lse: np.ndarray,
    offsets: np.ndarray, scale: float, slopes: np.ndarray,
    dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, window: int = 0, cap: float = 0.0,
    k_offsets: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Overwrite dq `[N, H, D]`, dk and dv `[Nk, G, D]` with the gradients.

    o and lse are the results of the forward pass. `offsets` applies to the queries, and also to the
    keys unless `k_offsets` is given. With `k_offsets`, the queries belong to the last tokens of
    longer sequences.
    """
    k_offsets = offsets if k_offsets is None else k_offsets
    check_streams(q, (k, v, dk, dv), offsets, k_offsets)
    for name, x in (("do", do), ("o", o)):
        check_array("attention_grad", name, x, q.shape)
    check_array("attention_grad", "lse", lse, q.shape[:2])
    check_array("attention_grad", "slopes", slopes, q.shape[1:2])
    check_output("attention_grad", "dq", dq, q.shape)
    check_output("attention_grad", "dk", dk, k.shape)
    check_output("attention_grad", "dv", dv, v.shape)
    n_seq, longest = len(offsets) - 1, int(np.diff(k_offsets).max())
    sizes = {"n_head": q.shape[1], "n_kv": k.shape[1], "d": k.shape[2]}
    scratch = SCRATCH.get(*gradient_floats(longest, len(k), n_seq, **sizes))
    _gradient(
        readonly(do), readonly(q), readonly(k), readonly(v), readonly(o), readonly(lse),
        readonly(offsets), readonly(k_offsets), n_parts(n_seq, q.shape[1]), np.float32(scale),
        readonly(slopes), window, np.float32(cap), dq, dk, dv, *scratch,
    )  # fmt: skip


def _sample(kind: dict[str, float], rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    lengths, h, g, d = {
        "tiny": ((1, 4), 4, 2, 3),
        "one": ((1,), 3, 1, 32),
        "odd": ((7, 1, 55), 5, 5, 33),
        "gqa": ((100, 61), 9, 3, 64),
    }[size]
    n = sum(lengths)
    return {
        "q": rng.standard_normal((n, h, d)).astype(dtype),
        "k": rng.standard_normal((n, g, d)).astype(dtype),
        "v": rng.standard_normal((n, g, d)).astype(dtype),
        "offsets": np.cumsum((0, *lengths), dtype=np.int32),
        "scale": 1 / np.sqrt(d),
        "bias": kind.get("bias", 0.0),
        "window": int(kind.get("window", 0)),
        "cap": kind.get("cap", 0.0),
    }


def _attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray, scale: float, bias: float,
    window: int, cap: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    o, lse = np.empty_like(q, order="C"), np.empty(q.shape[:2], np.float32)
    slopes = alibi_slopes(q.shape[1], bias)
    attention(
        q, k, v, q_offsets=offsets, k_offsets=offsets, scale=scale, slopes=slopes, o=o, lse=lse,
        window=window, cap=cap,
    )  # fmt: skip
    return o, lse


def _forward_op(**inputs: Any) -> np.ndarray:
    return _attend(**inputs)[0]


def _gradients(
    dy: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, offsets: np.ndarray, scale: float,
    bias: float, window: int, cap: float,
) -> Gradients:  # fmt: skip
    o, lse = _attend(q, k, v, offsets, scale, bias, window, cap)
    slopes = alibi_slopes(q.shape[1], bias)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_grad(
        dy, q, k, v, o=o, lse=lse, offsets=offsets, scale=scale, slopes=slopes,
        dq=dq, dk=dk, dv=dv, window=window, cap=cap,
    )  # fmt: skip
    return {"q": dq, "k": dk, "v": dv}


def _forward_ref(offsets: np.ndarray, bias: float, **inputs: Any) -> np.ndarray:
    slopes = alibi_slopes(inputs["q"].shape[1], bias)
    return attention_ref(q_offsets=offsets, k_offsets=offsets, slopes=slopes, **inputs)


def _gradients_ref(dy: np.ndarray, offsets: np.ndarray, bias: float, **inputs: Any) -> Gradients:
    slopes = alibi_slopes(inputs["q"].shape[1], bias)
    grads = attention_grad_ref(dy, offsets=offsets, slopes=slopes, **inputs)
    return dict(zip("qkv", grads, strict=True))


def _op(name: str, ggml: str, **kind: float) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "gqa"),
        sample=partial(_sample, kind),
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=_forward_op,
        grad=_gradients,
        tolerance=4e-6,
        why="float32 sums of up to 100 products, and an exponential accurate to 2.7e-7",
        ggml=ggml,
    )


_SOFTMAX = "ggml_mul_mat, ggml_soft_max_ext(mask, scale, max_bias), ggml_mul_mat"
OPS = (
    _op("attention", _SOFTMAX + "; ggml_soft_max_ext_back"),
    _op("attention with ALiBi", _SOFTMAX + "; no gradient in ggml", bias=8.0),
    _op("attention with a window", _SOFTMAX + " with a banded mask", window=20),
    _op("attention with a soft-cap", _SOFTMAX + " after ggml_tanh", cap=2.0),
)
