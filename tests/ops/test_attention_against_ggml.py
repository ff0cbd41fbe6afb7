"""Attention and its gradient against the same built from ggml's ops (real llama.cpp)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nbllama.ops.attention.attention import alibi_slopes, attention
from nbllama.ops.attention.grad import attention_grad
from tests.differences import compare
from tests.kernels.attention import (
    by_heads,
    causal_mask,
    ggml_attention,
    ggml_attention_grad,
    ggml_saved,
    of_groups,
)
from tests.kernels.case import normal
from tests.oracle import Graph

# float32 sums over up to 200 keys, and exp: both sides have a few units of 2^-24 of error in each.
BOUND = 5e-6


def of_one_sequence(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, do: np.ndarray,
    mask: np.ndarray, scale: float, max_bias: float, cap: float,
) -> list[np.ndarray]:  # fmt: skip
    """o, dq, dk, dv of one sequence: q, do [T, H, D]; k, v [T, G, D]."""
    saved = ggml_saved(q, k, mask, scale, max_bias, cap)
    heads_first = (q.shape[1], len(q), q.shape[2])
    with Graph() as g:
        o = ggml_attention(g, q, k, v, mask, scale, max_bias, cap)
        tensors = ggml_attention_grad(g, do, q, k, v, *saved, scale)
        found = [x.reshape(heads_first) for x in g.compute(o, *tensors.values())]
    gradients = of_groups(dict(zip(tensors, found[1:], strict=True)), k.shape[1])
    return [by_heads(found[0]), *gradients.values()]


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
    attention(
        q,
        k,
        v,
        q_offsets=offsets,
        k_offsets=offsets,
        scale=scale,
        slopes=slopes,
        o=o,
        lse=lse,
        window=window,
        cap=cap,
    )
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    attention_grad(
        do,
        q,
        k,
        v,
        o=o,
        lse=lse,
        offsets=offsets,
        scale=scale,
        slopes=slopes,
        dq=dq,
        dk=dk,
        dv=dv,
        window=window,
        cap=cap,
    )

    wanted = [np.empty_like(x) for x in (o, dq, dk, dv)]
    for a, b in itertools.pairwise(offsets):
        mask = causal_mask(b - a, b - a, window, max_bias > 0)
        one = of_one_sequence(q[a:b], k[a:b], v[a:b], do[a:b], mask, scale, max_bias, cap)
        for whole, part in zip(wanted, one, strict=True):
            whole[a:b] = part
    names = ("attention", "attention gradient dq", "attention gradient dk", "attention gradient dv")
    for name, mine, theirs in zip(names, (o, dq, dk, dv), wanted, strict=True):
        compare(name, mine, theirs, BOUND)
