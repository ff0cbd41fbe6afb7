"""The gradient of the gated delta rule (see `nbllama.ops.delta_net.delta_net` for the formulas).

A task processes one sequence and one key head, chunk by chunk
(`nbllama.ops.delta_net.chunks_grad`). It stores S and x for each chunk, so its memory use grows
linearly with the sequence length.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.ops.attention.tiles import round_up
from nbllama.ops.delta_net.chunks import CHUNK, LINE, numbers
from nbllama.ops.delta_net.chunks_grad import chunks_back, remember
from nbllama.ops.delta_net.delta_net import check_inputs, delta_net, delta_net_ref, fading
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly


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
    """Compute the gradients for q, k, v, g and beta in plain numpy, in the dtype of the inputs."""
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


@kernel(parallel=True)
def _backward(do, q, k, v, e, beta, scale, offsets, dq, dk, dv, dg, db):
    groups, d, heads, m = k.shape[1], k.shape[2], v.shape[1], v.shape[2]
    for task in prange((offsets.shape[0] - 1) * groups):
        of = task % groups
        first, last = np.int64(offsets[task // groups]), np.int64(offsets[task // groups + 1])
        chunks = (last - first + CHUNK - 1) // CHUNK
        starts = np.zeros((chunks, numbers(m, d)), np.float32)
        found = np.empty((chunks, numbers(CHUNK, m)), np.float32)
        dq[first:last, of] = np.float32(0.0)
        dk[first:last, of] = np.float32(0.0)
        for h in range(of, heads, groups):
            remember(k, v, e, beta, first, last, of, h, starts, found)
            chunks_back(
                do, q, k, v, e, beta, scale, first, last, of, h, starts, found, dq, dk, dv, dg, db
            )


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
    """Write dq, dk, dv, dg and dbeta, each with the shape of its input, given do `[N, H, M]`.

    The sequences have no states. Raises ValueError for mismatched arrays.
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
    """Return the amount of memory that a task uses, in floats.

    `longest` is the number of tokens in the longest sequence, and S is `[size, width]`.
    """

    def n(rows: int, columns: int) -> int:
        return (round_up(rows, PANEL) + ROWS) * (round_up(columns, PANEL) + LINE)

    kept = -(-longest // CHUNK) * (n(size, width) + n(CHUNK, size))
    return (
        kept + n(width, size) + n(size, width) + n(width, CHUNK) + n(size, CHUNK)
        + 4 * n(CHUNK, width) + 4 * n(CHUNK, size) + 5 * n(CHUNK, CHUNK)
    )  # fmt: skip


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
        why="up to 70 successive updates of the state in float32",
        ggml="ggml_gated_delta_net with a zero state; scale 1 / sqrt(D)",
    ),
)
