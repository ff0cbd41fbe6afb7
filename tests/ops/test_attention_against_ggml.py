"""Attention and its gradient against the same built from ggml's ops (real llama.cpp)."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.ops.attention import alibi_slopes, attention
from nbllama.ops.attention_grad import attention_grad
from tests.differences import compare
from tests.oracle import ggml

# float32 sums over up to 200 keys, and exp: both sides have a few units of 2^-24 of error in each.
BOUND = 5e-6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def causal_mask(n: int, window: int, alibi: bool) -> np.ndarray:
    """As llama.cpp's: -inf where key j is unseen by query i, else -(i - j) for ALiBi, or 0."""
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    seen = (j <= i) & ((window == 0) | (j > i - window))
    return np.where(seen, j - i if alibi else 0, -np.inf).astype(np.float32)


def turned(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.swapaxes(-1, -2))


def ggml_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, do: np.ndarray,
    mask: np.ndarray, scale: float, max_bias: float, cap: float,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """o, dq, dk, dv of one sequence: q, do [T, H, D]; k, v [T, G, D]. The products, softmax and
    its gradient are ggml's; ggml repeats KV heads over query heads itself.
    """
    q, k, v, do = (np.ascontiguousarray(x.swapaxes(0, 1)) for x in (q, k, v, do))
    h, g = len(q), len(k)
    shape = (h, q.shape[1], k.shape[1])
    z = ggml("ggml_mul_mat", k, q).reshape(shape)
    s, before = z, scale
    if cap:
        tanh = ggml("ggml_tanh", z * np.float32(scale / cap)).reshape(shape)
        s, before = np.float32(cap) * tanh, 1.0
    p = ggml("ggml_soft_max_ext", s, mask, float(before), max_bias).reshape(shape)
    o = ggml("ggml_mul_mat", turned(v), p).reshape(q.shape)
    dp = ggml("ggml_mul_mat", v, do).reshape(shape)
    dz = ggml("ggml_soft_max_ext_back", dp, p, float(scale), 0.0).reshape(shape)
    if cap:
        dz *= 1 - tanh**2
    dq = ggml("ggml_mul_mat", turned(k), dz).reshape(q.shape)
    dk = ggml("ggml_mul_mat", turned(q), turned(dz)).reshape(h, -1, q.shape[2])
    dv = ggml("ggml_mul_mat", turned(do), turned(p)).reshape(h, -1, q.shape[2])
    dk, dv = (x.reshape(g, h // g, *x.shape[1:]).sum(axis=1) for x in (dk, dv))
    return tuple(x.swapaxes(0, 1) for x in (o, dq, dk, dv))


@pytest.mark.parametrize(
    ("heads", "window", "max_bias", "cap"),
    [
        ((4, 4), 0, 0.0, 0.0),
        ((9, 3), 0, 0.0, 0.0),
        ((8, 1), 0, 0.0, 0.0),
        ((8, 8), 0, 8.0, 0.0),
        ((6, 2), 0, 8.0, 0.0),
        ((4, 2), 7, 0.0, 0.0),
        ((4, 2), 0, 0.0, 5.0),
        ((4, 2), 60, 4.0, 5.0),
    ],
)
def test_attention(heads: tuple[int, int], window: int, max_bias: float, cap: float) -> None:
    h, g, d = *heads, 24
    offsets = np.cumsum([0, 1, 2, 47, 130], dtype=np.int32)
    n, scale = int(offsets[-1]), 1 / np.sqrt(24)
    q, k, v, do = normal(1, n, h, d) * 2, normal(2, n, g, d), normal(3, n, g, d), normal(4, n, h, d)
    slopes = alibi_slopes(h, max_bias)
    o, lse = np.empty_like(q), np.empty((n, h), np.float32)
    attention(q, k, v, offsets, offsets, scale, slopes, o, lse, window, cap)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_grad(do, q, k, v, o, lse, offsets, scale, slopes, dq, dk, dv, window, cap)

    wanted = [np.empty_like(x) for x in (o, dq, dk, dv)]
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        mask = causal_mask(b - a, window, max_bias > 0)
        one = ggml_attention(q[a:b], k[a:b], v[a:b], do[a:b], mask, scale, max_bias, cap)
        for whole, part in zip(wanted, one, strict=True):
            whole[a:b] = part
    names = ("attention", "attention gradient dq", "attention gradient dk", "attention gradient dv")
    for name, mine, theirs in zip(names, (o, dq, dk, dv), wanted, strict=True):
        compare(name, mine, theirs, BOUND)
