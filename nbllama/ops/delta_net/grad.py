"""The gradient of the gated delta rule (`nbllama.ops.delta_net.delta_net` has the formulas).

A task takes one sequence and one head of keys. It goes forwards once and remembers S in front of
every CHUNK tokens; then chunk by chunk from the end, two rows of S at a time: it computes the rows
within the chunk again, and goes back through them. Memory of a task: `[N / CHUNK, M, D]` numbers,
so that it grows with the length of the sequence and not with its square.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.delta_net.delta_net import (
    check_inputs,
    copy,
    delta_net,
    delta_net_ref,
    dots,
    fading,
)
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

CHUNK = 32  # tokens


def delta_net_grad_ref(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
    offsets: np.ndarray,
    scale: float,
) -> dict[str, np.ndarray]:
    """Compute the gradients by q, k, v, g and beta in plain numpy, in the dtype of the inputs."""
    inputs = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    out = {name: np.zeros_like(a) for name, a in inputs.items()}
    for first, last in pairwise(offsets):
        for h in range(v.shape[1]):
            of = h % k.shape[1]
            states = [np.zeros((v.shape[2], k.shape[2]), v.dtype)]
            for t in range(first, last):
                past = np.exp(g[t, h]) * states[-1]
                d = beta[t, h] * (v[t, h] - past @ k[t, of])
                states.append(past + np.outer(d, k[t, of]))
            ds = np.zeros_like(states[0])
            for t in reversed(range(first, last)):
                past, b = np.exp(g[t, h]) * states[t - first], beta[t, h]
                missing = v[t, h] - past @ k[t, of]
                ds = ds + scale * np.outer(do[t, h], q[t, of])
                out["q"][t, of] += scale * states[t - first + 1].T @ do[t, h]
                dd = ds @ k[t, of]
                out["beta"][t, h] = dd @ missing
                out["v"][t, h] = b * dd
                out["k"][t, of] += ds.T @ (b * missing) - past.T @ (b * dd)
                dp = ds - np.outer(b * dd, k[t, of])
                out["g"][t, h] = (dp * past).sum()
                ds = np.exp(g[t, h]) * dp
    return out


@kernel()
def _remember(k, v, e, beta, first, last, groups, heads, size, width, h, s, starts):
    """Write rows of S in front of each chunk to starts `[chunks, M, D]`, flat."""
    for m0 in range(0, size, 2):
        m1 = min(m0 + 1, size - 1)
        s[: 2 * width] = np.float32(0.0)
        for t in range(first, last):
            at, of = (t * groups + h % groups) * width, t * heads + h
            if (t - first) % CHUNK == 0:
                row = (t - first) // CHUNK * size
                copy(s, 0, starts, (row + m0) * width, width)
                copy(s, width, starts, (row + m1) * width, width)
            u0, u1 = dots(s, 0, k, at, width)
            fade, b = e[np.uint64(of)], beta[np.uint64(of)]
            d0 = b * (v[np.uint64(of * size + m0)] - fade * u0)
            d1 = b * (v[np.uint64(of * size + m1)] - fade * u1)
            _next(s, 0, fade, d0, d1, k, at, 0, width)


@kernel()
def _next(s, a, e, d0, d1, k, at, to, width):
    """Two rows of s, at a, through a token; the new ones go to `to`, which may be a."""
    for i in range(width):
        key = k[np.uint64(at + i)]
        s[np.uint64(to + i)] = e * s[np.uint64(a + i)] + d0 * key
    for i in range(width):
        key = k[np.uint64(at + i)]
        s[np.uint64(to + width + i)] = e * s[np.uint64(a + width + i)] + d1 * key


@kernel(fast=True)
def _receive(ds, a, do0, do1, q, k, at, width):
    """Add what o gives to two rows of dS; return their products with k."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(width):
        query, key = q[np.uint64(at + i)], k[np.uint64(at + i)]
        new0 = ds[np.uint64(a + i)] + do0 * query
        new1 = ds[np.uint64(a + width + i)] + do1 * query
        ds[np.uint64(a + i)] = new0
        ds[np.uint64(a + width + i)] = new1
        sum0 += new0 * key
        sum1 += new1 * key
    return sum0, sum1


@kernel()
def _to_q(s, a, do0, do1, dq, at, width):
    for i in range(width):
        dq[np.uint64(at + i)] += do0 * s[np.uint64(a + i)] + do1 * s[np.uint64(a + width + i)]


@kernel()
def _to_k(s, a, du0, du1, ds, b, d0, d1, dk, at, width):
    for i in range(width):
        dk[np.uint64(at + i)] += (ds[np.uint64(b + i)] * d0 + ds[np.uint64(b + width + i)] * d1) + (
            s[np.uint64(a + i)] * du0 + s[np.uint64(a + width + i)] * du1
        )


@kernel(fast=True)
def _fade(s, a, e, du0, du1, k, at, ds, b, width):
    """Two rows of dS in front of the token, in place; return the sum of dP times S[t - 1]."""
    total = np.float32(0.0)
    for i in range(width):
        key = k[np.uint64(at + i)]
        dp0 = ds[np.uint64(b + i)] + du0 * key
        dp1 = ds[np.uint64(b + width + i)] + du1 * key
        total += dp0 * s[np.uint64(a + i)] + dp1 * s[np.uint64(a + width + i)]
        ds[np.uint64(b + i)] = e * dp0
        ds[np.uint64(b + width + i)] = e * dp1
    return total


@kernel()
def _chunk(
    do, q, k, v, e, beta, scale, first, last, groups, heads, size, width, h, m0, two, s, missing,
    ds, dq, dk, dv, dg, db,
):  # fmt: skip
    """Tokens first to last of a chunk backwards, for rows m0 and, with `two`, m0 + 1.

    s `[CHUNK + 1, 2, D]` has their rows of S in front of the chunk at 0; all arrays are flat.
    """
    pair, row = 2 * width, m0 * width
    for t in range(first, last):
        at, of, a = (t * groups + h % groups) * width, t * heads + h, (t - first) * pair
        u0, u1 = dots(s, a, k, at, width)
        fade, b = e[np.uint64(of)], beta[np.uint64(of)]
        missing0 = v[np.uint64(of * size + m0)] - fade * u0
        missing1 = v[np.uint64(of * size + m0 + two)] - fade * u1
        missing[np.uint64(2 * (t - first))] = missing0
        missing[np.uint64(2 * (t - first) + 1)] = missing1
        _next(s, a, fade, b * missing0, b * missing1, k, at, a + pair, width)
    for t in range(last - 1, first - 1, -1):
        at, of, a = (t * groups + h % groups) * width, t * heads + h, (t - first) * pair
        fade, b = e[np.uint64(of)], beta[np.uint64(of)]
        missing0 = missing[np.uint64(2 * (t - first))]
        missing1 = missing[np.uint64(2 * (t - first) + 1)]
        do0, do1 = scale * do[np.uint64(of * size + m0)], np.float32(0.0)
        if two:
            do1 = scale * do[np.uint64(of * size + m0 + 1)]
        dd0, dd1 = _receive(ds, row, do0, do1, q, k, at, width)
        _to_q(s, a + pair, do0, do1, dq, at, width)
        dv[np.uint64(of * size + m0)] = b * dd0
        if two:
            dv[np.uint64(of * size + m0 + 1)] = b * dd1
        db[np.uint64(of)] += dd0 * missing0 + dd1 * missing1
        du0, du1 = -b * dd0, -b * dd1
        _to_k(s, a, fade * du0, fade * du1, ds, row, b * missing0, b * missing1, dk, at, width)
        dg[np.uint64(of)] += fade * _fade(s, a, fade, du0, du1, k, at, ds, row, width)


@kernel(parallel=True)
def _backward(do, q, k, v, e, beta, scale, offsets, dq, dk, dv, dg, db):
    groups, width, heads, size = k.shape[1], k.shape[2], v.shape[1], v.shape[2]
    qf, kf, vf, dof = q.reshape(-1), k.reshape(-1), v.reshape(-1), do.reshape(-1)
    ef, bf, dgf, dbf = e.reshape(-1), beta.reshape(-1), dg.reshape(-1), db.reshape(-1)
    dqf, dkf, dvf = dq.reshape(-1), dk.reshape(-1), dv.reshape(-1)
    for task in prange((offsets.shape[0] - 1) * groups):
        first, last = np.int64(offsets[task // groups]), np.int64(offsets[task // groups + 1])
        chunks = (last - first + CHUNK - 1) // CHUNK
        starts = np.empty(chunks * size * width, np.float32)
        ds = np.empty((size + 1) * width, np.float32)
        s = np.empty((CHUNK + 1) * 2 * width, np.float32)
        missing = np.empty(2 * CHUNK, np.float32)
        dq[first:last, task % groups] = np.float32(0.0)
        dk[first:last, task % groups] = np.float32(0.0)
        for h in range(task % groups, heads, groups):
            dg[first:last, h] = np.float32(0.0)
            db[first:last, h] = np.float32(0.0)
            _remember(kf, vf, ef, bf, first, last, groups, heads, size, width, h, s, starts)
            ds[:] = np.float32(0.0)
            for c in range(chunks - 1, -1, -1):
                a, z = first + c * CHUNK, min(first + (c + 1) * CHUNK, last)
                for m0 in range(0, size, 2):
                    two = 1 if m0 + 1 < size else 0
                    copy(starts, (c * size + m0) * width, s, 0, width)
                    copy(starts, (c * size + m0 + two) * width, s, width, width)
                    if not two:
                        ds[size * width :] = np.float32(0.0)
                        s[width : 2 * width] = np.float32(0.0)
                    _chunk(
                        dof, qf, kf, vf, ef, bf, scale, a, z, groups, heads, size, width, h, m0,
                        two, s, missing, ds, dqf, dkf, dvf, dgf, dbf,
                    )  # fmt: skip


def delta_net_grad(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
    offsets: np.ndarray,
    scale: float,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
    dg: np.ndarray,
    dbeta: np.ndarray,
) -> None:
    """Write dq, dk, dv, dg and dbeta, of the shapes of the inputs, for do `[N, H, M]`.

    For sequences that begin here. Raises ValueError for arrays that do not fit each other.
    """
    check_inputs("delta_net_grad", q, k, v, g=g, beta=beta, offsets=offsets)
    check_array("delta_net_grad", "do", do, v.shape)
    outputs = (("dq", dq, q), ("dk", dk, k), ("dv", dv, v), ("dg", dg, g), ("dbeta", dbeta, beta))
    for name, array, like in outputs:
        check_output("delta_net_grad", name, array, like.shape)
    _backward(
        *map(readonly, (do, q, k, v, fading(g), beta)), np.float32(scale), readonly(offsets),
        dq, dk, dv, dg, dbeta,
    )  # fmt: skip


def gradient_floats(longest: int, size: int, width: int) -> int:
    """Numbers of one task's memory, for a sequence of `longest` tokens and a state `[M, D]`."""
    chunks = -(-longest // CHUNK)
    return chunks * size * width + (size + 1) * width + 2 * (CHUNK + 1) * (width + 1)


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    lengths, groups, heads, m, d = {
        "tiny": ([1, 3], 1, 2, 3, 2),
        "one": ([1], 2, 2, 4, 8),
        "odd": ([2, 70, 1], 2, 4, 5, 12),
        "wide": ([40, 64], 2, 2, 64, 64),
    }[size]
    n, offsets = sum(lengths), np.cumsum([0, *lengths], dtype=np.int32)
    q, k = (rng.standard_normal((n, groups, d)) for _ in range(2))
    q, k = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (q, k))
    inputs: Inputs = {
        "q": q,
        "k": k,
        "v": rng.standard_normal((n, heads, m)),
        "g": -rng.uniform(0.01, 2, (n, heads)),
        "beta": rng.uniform(0.05, 0.95, (n, heads)),
    }
    arrays = {name: a.astype(dtype) for name, a in inputs.items()}
    return {**arrays, "offsets": offsets, "scale": 0.7}


def _forward(**inputs: Any) -> np.ndarray:
    o = np.empty(np.shape(inputs["v"]), np.float32)
    delta_net(**inputs, o=o)
    return o


def _gradients(dy: np.ndarray, **inputs: Any) -> Gradients:
    names = ("q", "k", "v", "g", "beta")
    out = {name: np.empty_like(inputs[name]) for name in names}
    delta_net_grad(dy, **inputs, **{f"d{name}": a for name, a in out.items()})
    return out


OPS = (
    Op(
        name="delta_net",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=delta_net_ref,
        grad_ref=delta_net_grad_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=4e-6,
        why="a state goes through up to 70 tokens in float32",
        ggml="ggml_gated_delta_net with a state of zeros; scale 1 / sqrt(D)",
    ),
)
