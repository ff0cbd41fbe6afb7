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
    delta_net,
    delta_net_ref,
    dots,
    fading,
    step,
)
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

CHUNK = 32  # tokens


def delta_net_grad_ref(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    beta: np.ndarray,
    *,
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
def _remember(k, v, e, beta, first, last, h, s, starts):
    """Write rows of S in front of each chunk to starts `[chunks, M, D]`."""
    of, size = h % k.shape[1], v.shape[2]
    row0, row1 = s[0], s[1]
    for m0 in range(0, size, 2):
        m1 = min(m0 + 1, size - 1)
        s[:] = np.float32(0.0)
        for t in range(first, last):
            if (t - first) % CHUNK == 0:
                starts[(t - first) // CHUNK, m0] = row0
                starts[(t - first) // CHUNK, m1] = row1
            u0, u1 = dots(row0, row1, k[t, of])
            fade, b = e[t, h], beta[t, h]
            d0 = b * (v[t, h, m0] - fade * u0)
            d1 = b * (v[t, h, m1] - fade * u1)
            step(row0, row1, fade, d0, d1, k[t, of], k[t, of])


@kernel()
def _next(row0, row1, e, d0, d1, k, new0, new1):
    for i in range(k.shape[0]):
        new0[i] = e * row0[i] + d0 * k[i]
        new1[i] = e * row1[i] + d1 * k[i]


@kernel(fast=True)
def _receive(ds0, ds1, do0, do1, q, k):
    """Add what o gives to two rows of dS; return their products with k."""
    sum0 = sum1 = np.float32(0.0)
    for i in range(k.shape[0]):
        new0 = ds0[i] + do0 * q[i]
        new1 = ds1[i] + do1 * q[i]
        ds0[i] = new0
        ds1[i] = new1
        sum0 += new0 * k[i]
        sum1 += new1 * k[i]
    return sum0, sum1


@kernel()
def _to_q(row0, row1, do0, do1, dq):
    for i in range(dq.shape[0]):
        dq[i] += do0 * row0[i] + do1 * row1[i]


@kernel()
def _to_k(row0, row1, du0, du1, ds0, ds1, d0, d1, dk):
    for i in range(dk.shape[0]):
        dk[i] += (ds0[i] * d0 + ds1[i] * d1) + (row0[i] * du0 + row1[i] * du1)


@kernel(fast=True)
def _fade(row0, row1, e, du0, du1, k, ds0, ds1):
    """Two rows of dS in front of the token, in place; return the sum of dP times S[t - 1]."""
    total = np.float32(0.0)
    for i in range(k.shape[0]):
        dp0 = ds0[i] + du0 * k[i]
        dp1 = ds1[i] + du1 * k[i]
        total += dp0 * row0[i] + dp1 * row1[i]
        ds0[i] = e * dp0
        ds1[i] = e * dp1
    return total


@kernel()
def _chunk(
    do, q, k, v, e, beta, scale, first, last, h, m0, two, s, missing, ds, dq, dk, dv, dg, db
):
    """Tokens first to last of a chunk backwards, for rows m0 and, with `two`, m0 + 1.

    s `[CHUNK + 1, 2, D]` has their rows of S in front of the chunk at 0.
    """
    of = h % k.shape[1]
    m1 = m0 + two
    for t in range(first, last):
        at = t - first
        u0, u1 = dots(s[at, 0], s[at, 1], k[t, of])
        fade, b = e[t, h], beta[t, h]
        missing[at, 0] = v[t, h, m0] - fade * u0
        missing[at, 1] = v[t, h, m1] - fade * u1
        d0, d1 = b * missing[at, 0], b * missing[at, 1]
        _next(s[at, 0], s[at, 1], fade, d0, d1, k[t, of], s[at + 1, 0], s[at + 1, 1])
    for t in range(last - 1, first - 1, -1):
        at, fade, b = t - first, e[t, h], beta[t, h]
        do0 = scale * do[t, h, m0]
        do1 = scale * do[t, h, m1] if two else np.float32(0.0)
        dd0, dd1 = _receive(ds[0], ds[1], do0, do1, q[t, of], k[t, of])
        _to_q(s[at + 1, 0], s[at + 1, 1], do0, do1, dq[t, of])
        dv[t, h, m0] = b * dd0
        if two:
            dv[t, h, m1] = b * dd1
        db[t, h] += dd0 * missing[at, 0] + dd1 * missing[at, 1]
        du0, du1 = -b * dd0, -b * dd1
        _to_k(
            s[at, 0], s[at, 1], fade * du0, fade * du1, ds[0], ds[1], b * missing[at, 0],
            b * missing[at, 1], dk[t, of],
        )  # fmt: skip
        dg[t, h] += fade * _fade(s[at, 0], s[at, 1], fade, du0, du1, k[t, of], ds[0], ds[1])


@kernel(parallel=True)
def _backward(do, q, k, v, e, beta, scale, offsets, dq, dk, dv, dg, db):
    groups, width, size = k.shape[1], k.shape[2], v.shape[2]
    for task in prange((offsets.shape[0] - 1) * groups):
        first, last = offsets[task // groups], offsets[task // groups + 1]
        chunks = (last - first + CHUNK - 1) // CHUNK
        starts = np.empty((chunks, size, width), np.float32)
        ds = np.empty((size + 1, width), np.float32)
        s = np.empty((CHUNK + 1, 2, width), np.float32)
        missing = np.empty((CHUNK, 2), np.float32)
        dq[first:last, task % groups] = np.float32(0.0)
        dk[first:last, task % groups] = np.float32(0.0)
        for h in range(task % groups, v.shape[1], groups):
            dg[first:last, h] = np.float32(0.0)
            db[first:last, h] = np.float32(0.0)
            _remember(k, v, e, beta, first, last, h, s[0], starts)
            ds[:] = np.float32(0.0)
            for c in range(chunks - 1, -1, -1):
                a, z = first + c * CHUNK, min(first + (c + 1) * CHUNK, last)
                for m0 in range(0, size, 2):
                    two = 1 if m0 + 1 < size else 0
                    s[0, 0] = starts[c, m0]
                    s[0, 1] = starts[c, m0 + two]
                    if not two:
                        ds[size] = np.float32(0.0)
                        s[0, 1] = np.float32(0.0)
                    _chunk(
                        do,
                        q,
                        k,
                        v,
                        e,
                        beta,
                        scale,
                        a,
                        z,
                        h,
                        m0,
                        two,
                        s,
                        missing,
                        ds[m0 : m0 + 2],
                        dq,
                        dk,
                        dv,
                        dg,
                        db,
                    )


def delta_net_grad(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    beta: np.ndarray,
    *,
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
    check_inputs("delta_net_grad", q, k, v, g, beta, offsets=offsets)
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
