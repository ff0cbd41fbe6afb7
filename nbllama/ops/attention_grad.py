"""Gradient of attention, by recomputing each block's probabilities from the kept `lse`.

Formulas, shapes and the plain-numpy reference stand in `nbllama.ops.attention`. A task owns one KV
head of one sequence and adds up dk and dv over the heads of its group in ascending order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numba import get_thread_id, prange

from nbllama._jit import kernel
from nbllama.ops.attention import alibi_slopes, attention, attention_grad_ref, attention_ref
from nbllama.ops.attention_tiles import (
    BLOCK,
    cap_and_bias,
    check_streams,
    copy_block,
    pack_rows,
    pack_transposed,
    round_up,
    scores,
    workspace,
)
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly
from nbllama.simd import PANEL, ROWS, exp_f32, fma_tile


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
    """out[first + j, :] += sum over the block's queries i of s[i, j] * rows[i, :] (rows in
    panels).
    """
    for j in range(0, keys, ROWS):
        for p in range(d_panels):
            fma_tile(
                s, j, 1, ld, rows, p * n * PANEL, PANEL, n,
                out, (first + j) * wide + p * PANEL, wide, False,
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
        pack_transposed(k, t0, tk, g, d, kp)
        pack_transposed(v, t0, tk, g, d, vp)
        pack_rows(k, t0, tk, g, d, one, kr)
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
                copy_block(q, t0 + i0, n, h, d, scale, q_rows)
                copy_block(do, t0 + i0, n, h, d, one, do_rows)
                pack_rows(q, t0 + i0, n, h, d, scale, q_panels)
                pack_rows(do, t0 + i0, n, h, d, one, do_panels)
                scores(q_rows, d, kp, first, last, i0, n, s, ld)
                scores(do_rows, d, vp, first, last, i0, n, ds, ld)
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
                for i in range(0, n, ROWS):
                    keys = min(last, i0 + i + ROWS) - first
                    for p in range(d_panels):
                        fma_tile(
                            ds, i * ld, ld, 1, kr, (p * tk + first) * PANEL, PANEL, keys,
                            tile, i * wide + p * PANEL, wide, True,
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


def gradient_pieces(longest: int, d: int) -> list[int]:
    """The same for `attention_grad`."""
    wide, keys = round_up(d, PANEL), round_up(longest, PANEL)
    grads, score = (longest + ROWS) * wide, BLOCK * (keys + PANEL)
    block = [BLOCK * d] * 2 + [BLOCK * wide] * 3
    return [keys * d, keys * d, longest * wide, grads, grads, score, score, keys + PANEL, *block]


def attention_grad(
    do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, lse: np.ndarray,
    offsets: np.ndarray, scale: float, slopes: np.ndarray,
    dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, window: int = 0, cap: float = 0.0,
) -> None:  # fmt: skip
    """Gradients into dq `[N, H, D]`, dk, dv `[N, G, D]` (overwritten); o and lse are what the
    forward pass gave.
    """
    check_streams(q, (k, v, dk, dv), offsets, offsets)
    for name, x in (("do", do), ("o", o)):
        check_array("attention_grad", name, x, q.shape)
    check_array("attention_grad", "lse", lse, q.shape[:2])
    check_array("attention_grad", "slopes", slopes, q.shape[1:2])
    check_output("attention_grad", "dq", dq, q.shape)
    check_output("attention_grad", "dk", dk, k.shape)
    check_output("attention_grad", "dv", dv, v.shape)
    work, sizes = workspace(gradient_pieces(int(np.diff(offsets).max()), q.shape[2]))
    _gradient(
        readonly(do), readonly(q), readonly(k), readonly(v), readonly(o), readonly(lse),
        readonly(offsets), np.float32(scale), readonly(slopes), window, np.float32(cap),
        dq, dk, dv, work, sizes,
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
    attention(q, k, v, offsets, offsets, scale, slopes, o, lse, window, cap)
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
    attention_grad(dy, q, k, v, o, lse, offsets, scale, slopes, dq, dk, dv, window, cap)
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
        why="float32 sums of up to 100 products, and an exponential with 2.7e-7",
        ggml=ggml,
    )


_SOFTMAX = "ggml_mul_mat, ggml_soft_max_ext(mask, scale, max_bias), ggml_mul_mat"
OPS = (
    _op("attention", _SOFTMAX + "; ggml_soft_max_ext_back"),
    _op("attention with ALiBi", _SOFTMAX + "; no gradient in ggml", bias=8.0),
    _op("attention with a window", _SOFTMAX + " with a banded mask", window=20),
    _op("attention with a soft-cap", _SOFTMAX + " after ggml_tanh", cap=2.0),
)
