"""The gated delta rule: what a head has read so far is one matrix S, changed a little a token.

For each token t of a sequence, with keys k and queries q of D numbers and values v of M numbers:

    P = exp(g) S[t-1]                       the past fades: g <= 0
    d = beta (v - P k)                      what P does not say of v yet
    S[t] = P + d kT                         P learns it
    o = scale S[t] q

S is `[M, D]`, zero in front of a sequence or as a state says. Every row of S goes through a
sequence by itself: it needs v[m] and no other row. So the kernels are parallel over sequences,
heads and rows, and each token adds to a row what it would add alone: its bits do not depend on what
else is in the batch, on what follows, or on where a text was cut into steps.

Gradient, from the last token up, with dS of the later tokens:

    dS += scale do qT           dq = scale S[t]T do
    dd = dS k                   dbeta = dd . (v - P k)           dv = beta dd       du = -beta dd
    dk = dST d + PT du          dP = dS + du kT                  dg = sum dP P      dS <- exp(g) dP

The backward pass computes S again (`nbllama.ops.delta_net.grad`).

Shapes, all float32: q, k `[N, G, D]`, v, o `[N, H, M]`, g, beta `[N, H]`; head h of H has the keys
and queries of h mod G. A state is `[S, H, M, D]`. offsets `[S + 1]` int32.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (2024). llama.cpp:
`ggml_gated_delta_net`, whose scale is 1 / sqrt(D).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import check_array, check_output, readonly

ROWS = 16  # rows of S that a task takes through a sequence, two at a time


def delta_net_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    beta: np.ndarray,
    *,
    offsets: np.ndarray,
    scale: float,
    state: np.ndarray | None = None,
) -> np.ndarray:
    """Compute o in plain numpy, in the dtype of the inputs."""
    o = np.empty_like(v)
    for s, (first, last) in enumerate(pairwise(offsets)):
        for h in range(v.shape[1]):
            of = h % k.shape[1]
            past = np.zeros((v.shape[2], k.shape[2]), v.dtype) if state is None else state[s, h]
            for t in range(first, last):
                past = np.exp(g[t, h]) * past
                d = beta[t, h] * (v[t, h] - past @ k[t, of])
                past = past + np.outer(d, k[t, of])
                o[t, h] = scale * (past @ q[t, of])
    return o


@kernel(fast=True)
def dots(row0, row1, x):
    """Return the products of two rows with x."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(x.shape[0]):
        sum0 += row0[i] * x[i]
        sum1 += row1[i] * x[i]
    return sum0, sum1


@kernel(fast=True)
def step(row0, row1, e, d0, d1, k, q):
    """Two rows of S through a token, in place; return their products with q."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(k.shape[0]):
        new0 = e * row0[i] + d0 * k[i]
        new1 = e * row1[i] + d1 * k[i]
        row0[i] = new0
        row1[i] = new1
        sum0 += new0 * q[i]
        sum1 += new1 * q[i]
    return sum0, sum1


@kernel()
def _rows(q, k, v, e, beta, scale, first, last, h, m0, m1, s, o):
    """Rows m0 and m1 of S, held in s `[2, D]`, through tokens first to last."""
    of = h % k.shape[1]
    row0, row1 = s[0], s[1]
    for t in range(first, last):
        u0, u1 = dots(row0, row1, k[t, of])
        fade, b = e[t, h], beta[t, h]
        d0 = b * (v[t, h, m0] - fade * u0)
        d1 = b * (v[t, h, m1] - fade * u1)
        o0, o1 = step(row0, row1, fade, d0, d1, k[t, of], q[t, of])
        o[t, h, m0] = scale * o0
        o[t, h, m1] = scale * o1


@kernel(parallel=True)
def _forward(q, k, v, e, beta, scale, offsets, before, after, o):
    heads, size, width = v.shape[1], v.shape[2], k.shape[2]
    parts = (size + ROWS - 1) // ROWS
    for task in prange((offsets.shape[0] - 1) * heads * parts):
        n, h, part = task // (heads * parts), task // parts % heads, task % parts
        s = np.empty((2, width), np.float32)
        for m0 in range(part * ROWS, min((part + 1) * ROWS, size), 2):
            m1 = min(m0 + 1, size - 1)  # of an odd number the last is computed twice
            if before.shape[0] > 0:
                s[0] = before[n, h, m0]
                s[1] = before[n, h, m1]
            else:
                s[:] = np.float32(0.0)
            _rows(q, k, v, e, beta, scale, offsets[n], offsets[n + 1], h, m0, m1, s, o)
            if after.shape[0] > 0:
                after[n, h, m0] = s[0]
                after[n, h, m1] = s[1]


@kernel()
def _exp(g, e):
    for i in range(g.shape[0]):
        e[i] = exp_f32(g[i])


def fading(g: np.ndarray) -> np.ndarray:
    """Return exp(g) `[N, H]` for g `[N, H]`."""
    e = np.empty_like(g)
    _exp(readonly(g.reshape(-1)), e.reshape(-1))
    return e


def delta_net(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    beta: np.ndarray,
    *,
    offsets: np.ndarray,
    scale: float,
    o: np.ndarray,
    before: np.ndarray | None = None,
    after: np.ndarray | None = None,
) -> None:
    """Write o `[N, H, M]`; shapes above.

    `before` `[S, H, M, D]` is the state in front of each sequence, None for zeros; `after` of the
    same shape receives the state behind it.

    Raises ValueError for arrays that do not fit each other.
    """
    check_inputs("delta_net", q, k, v, g, beta, offsets=offsets)
    check_output("delta_net", "o", o, v.shape)
    shape = (len(offsets) - 1, *v.shape[1:], k.shape[2])
    if before is not None:
        check_array("delta_net", "before", before, shape)
    if after is not None:
        check_output("delta_net", "after", after, shape)
    _forward(
        *map(readonly, (q, k, v, fading(g), beta)), np.float32(scale), readonly(offsets),
        readonly(_NO_STATE if before is None else before),
        _NO_STATE if after is None else after, o,
    )  # fmt: skip


_NO_STATE = np.empty((0, 1, 1, 1), np.float32)


def check_inputs(
    op: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    beta: np.ndarray,
    *,
    offsets: np.ndarray,
) -> None:
    """Raise ValueError for inputs that do not fit each other."""
    if np.ndim(q) != 3 or np.ndim(v) != 3 or 0 in q.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"{op}: q {np.shape(q)} and v {np.shape(v)}, wanted [N, G, D], [N, H, M]")
    if v.shape[1] % q.shape[1]:
        raise ValueError(f"{op}: {q.shape[1]} heads of keys do not divide {v.shape[1]}")
    check_array(op, "q", q, q.shape)
    check_array(op, "k", k, q.shape)
    check_array(op, "v", v, (len(q), *v.shape[1:]))
    for name, array in (("g", g), ("beta", beta)):
        check_array(op, name, array, v.shape[:2])
    check_array(op, "offsets", offsets, (len(offsets),), dtype=np.int32)
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(q) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{op}: offsets do not divide {len(q)} tokens into sequences")
