"""The gated delta rule, in which each head summarises the past in a matrix S.

For each token t, with a key k and a query q of D numbers and a value v of M numbers:

    P = exp(g) S[t-1]                       the past fades, because g <= 0
    d = beta (v - P k)                      the error of P in predicting v, times beta
    S[t] = P + d kT                         P, corrected by d
    o = scale S[t] q

S is `[M, D]`. At the start of a sequence, it is zero or a given state. There are two
implementations:

- Sequences without states, as in training, are processed in chunks of 30 tokens, with a few matrix
  products per chunk (`nbllama.ops.delta_net.chunks`).
- Sequences with states, as in generation, are processed token by token, and each row of S is
  updated independently of the others. A token's result is therefore bit-identical no matter how a
  sequence is divided into steps.

In both implementations, a token's result is bit-identical regardless of the rest of the batch, of
later tokens, and of the number of threads.

Gradient, from the last token to the first, given dS from the following tokens:

    dS += scale do qT           dq = scale S[t]T do
    dd = dS k                   dbeta = dd . (v - P k)           dv = beta dd       du = -beta dd
    dk = dST d + PT du          dP = dS + du kT                  dg = sum dP P      dS <- exp(g) dP

The backward pass recomputes S (`nbllama.ops.delta_net.grad`).

q and k are `[N, G, D]`, v and o are `[N, H, M]`, g and beta are `[N, H]`, and a state is
`[S, H, M, D]`, all float32; offsets is int32 `[S + 1]`. Head h uses the queries and keys of head
h mod G.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (2024). llama.cpp:
`ggml_gated_delta_net`, whose scale is 1 / sqrt(D).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.delta_net.chunks import through_chunks
from nbllama.ops.op import check_array, check_output, readonly

ROWS = 16  # rows of S per task; a task updates two rows at a time


def delta_net_ref(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
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


# Flat arrays and unsigned indices are used because slicing for each token would take longer than
# the dot product.
@kernel(fast=True)
def dots(s, a, x, at, width):
    """Return the dot products of the row of x at `at` with the rows of s at a and a + width."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(width):
        number = x[np.uint64(at + i)]
        sum0 += s[np.uint64(a + i)] * number
        sum1 += s[np.uint64(a + width + i)] * number
    return sum0, sum1


@kernel(fast=True)
def step(s, a, e, d0, d1, k, q, at, width):
    """Update the rows of s at a and a + width with one token; return their dot products with q."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(width):
        key, query = k[np.uint64(at + i)], q[np.uint64(at + i)]
        new0 = e * s[np.uint64(a + i)] + d0 * key
        new1 = e * s[np.uint64(a + width + i)] + d1 * key
        s[np.uint64(a + i)] = new0
        s[np.uint64(a + width + i)] = new1
        sum0 += new0 * query
        sum1 += new1 * query
    return sum0, sum1


@kernel()
def copy(x, x0, y, y0, n):
    """Copy n numbers from x, starting at x0, to y, starting at y0."""
    for i in range(n):
        y[np.uint64(y0 + i)] = x[np.uint64(x0 + i)]


@kernel()
def _rows(q, k, v, e, beta, scale, first, last, groups, heads, size, h, m0, m1, s, width, o):
    """Update rows m0 and m1 of S, stored in s `[2 D]`, with tokens first to last - 1."""
    for t in range(first, last):
        at, of = (t * groups + h % groups) * width, t * heads + h
        u0, u1 = dots(s, 0, k, at, width)
        fade, b = e[np.uint64(of)], beta[np.uint64(of)]
        d0 = b * (v[np.uint64(of * size + m0)] - fade * u0)
        d1 = b * (v[np.uint64(of * size + m1)] - fade * u1)
        o0, o1 = step(s, 0, fade, d0, d1, k, q, at, width)
        o[np.uint64(of * size + m0)] = scale * o0
        o[np.uint64(of * size + m1)] = scale * o1


@kernel(parallel=True)
def _forward(q, k, v, e, beta, scale, offsets, before, after, o):
    groups, width, heads, size = k.shape[1], k.shape[2], v.shape[1], v.shape[2]
    parts = (size + ROWS - 1) // ROWS
    qf, kf, vf, of = q.reshape(-1), k.reshape(-1), v.reshape(-1), o.reshape(-1)
    ef, bf = e.reshape(-1), beta.reshape(-1)
    for task in prange((offsets.shape[0] - 1) * heads * parts):
        n, h, part = task // (heads * parts), task // parts % heads, task % parts
        first, last = np.int64(offsets[n]), np.int64(offsets[n + 1])
        s = np.empty(2 * width, np.float32)
        for m0 in range(part * ROWS, min((part + 1) * ROWS, size), 2):
            m1 = min(m0 + 1, size - 1)  # if the number of rows is odd, compute the last row twice
            if before.shape[0] > 0:
                s[:width] = before[n, h, m0]
                s[width:] = before[n, h, m1]
            else:
                s[:] = np.float32(0.0)
            _rows(
                qf, kf, vf, ef, bf, scale, first, last, groups, heads, size, h, m0, m1, s, width, of
            )
            if after.shape[0] > 0:
                after[n, h, m0] = s[:width]
                after[n, h, m1] = s[width:]


@kernel(parallel=True)
def _in_chunks(q, k, v, e, beta, scale, offsets, o):
    heads, groups = v.shape[1], k.shape[1]
    for task in prange((offsets.shape[0] - 1) * heads):
        n, h = task // heads, task % heads
        first, last = np.int64(offsets[n]), np.int64(offsets[n + 1])
        through_chunks(q, k, v, e, beta, scale, first, last, h % groups, h, o)


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
    *,
    g: np.ndarray,
    beta: np.ndarray,
    offsets: np.ndarray,
    scale: float,
    o: np.ndarray,
    before: np.ndarray | None = None,
    after: np.ndarray | None = None,
) -> None:
    """Write o `[N, H, M]`; see the module docstring for the other shapes.

    `before` `[S, H, M, D]` contains the state before each sequence; None means zeros. `after`,
    which has the same shape, receives the state after each sequence. If both are None, tokens are
    processed in chunks.

    Raises ValueError for mismatched arrays.
    """
    check_inputs("delta_net", q, k, v, g=g, beta=beta, offsets=offsets)
    check_output("delta_net", "o", o, v.shape)
    shape = (len(offsets) - 1, *v.shape[1:], k.shape[2])
    if before is not None:
        check_array("delta_net", "before", before, shape)
    if after is not None:
        check_output("delta_net", "after", after, shape)
    inputs = (*map(readonly, (q, k, v, fading(g), beta)), np.float32(scale), readonly(offsets))
    if before is None and after is None:
        _in_chunks(*inputs, o)
        return
    _forward(
        *inputs,
        readonly(_NO_STATE if before is None else before),
        _NO_STATE if after is None else after, o,
    )  # fmt: skip


_NO_STATE = np.empty((0, 1, 1, 1), np.float32)


def check_inputs(
    op: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Raise ValueError if the inputs do not match."""
    if np.ndim(q) != 3 or np.ndim(v) != 3 or 0 in q.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(
            f"{op}: q has shape {np.shape(q)}, expected [N, G, D], and v has shape {np.shape(v)}, "
            f"expected [N, H, M]"
        )
    if v.shape[1] % q.shape[1]:
        raise ValueError(
            f"{op}: {v.shape[1]} value heads cannot be divided evenly among {q.shape[1]} key heads"
        )
    check_array(op, "q", q, q.shape)
    check_array(op, "k", k, q.shape)
    check_array(op, "v", v, (len(q), *v.shape[1:]))
    for name, array in (("g", g), ("beta", beta)):
        check_array(op, name, array, v.shape[:2])
    check_array(op, "offsets", offsets, (len(offsets),), dtype=np.int32)
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(q) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{op}: offsets do not divide {len(q)} tokens into sequences")
