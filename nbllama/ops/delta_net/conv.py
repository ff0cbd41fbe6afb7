"""The causal convolution before a delta net, followed by SiLU.

Each output depends on a token and the K - 1 tokens before it, in the same channel:

    p[t] = sum over j of w[j] u[t - K + 1 + j]          y[t] = silu(p[t])

where w contains the K taps of the channel. Before the first token of a sequence, u is 0 or is read
from the state, which contains the last K - 1 values of u from an earlier part of the sequence.

Gradient, where e[t] = dy[t] silu'(p[t]), and e is 0 after the last token of the sequence:

    du[t] = sum over j of w[j] e[t + K - 1 - j]

The taps are frozen, so they have no gradient. Queries, keys and values are different columns of u.
Each of the three is processed by its own kernel call, which writes the result to a separate array.

The N tokens of S sequences are concatenated. u, y and du are `[N, W]`, w is `[K, W]`, and a state
is `[S, K - 1, W]`, all float32; offsets is int32 `[S + 1]`. Tokens are processed in parallel.

llama.cpp: `ggml_ssm_conv`, then `ggml_silu`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly
from nbllama.ops.short_conv import sequences

_ONE = np.float32(1.0)


def conv_silu_ref(
    u: np.ndarray, w: np.ndarray, offsets: np.ndarray, state: np.ndarray | None = None
) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of the inputs."""
    p = _mixed_ref(u, w, offsets, state)
    return np.asarray(p / (1 + np.exp(-p)))


def _mixed_ref(
    u: np.ndarray, w: np.ndarray, offsets: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    taps, width = w.shape
    p = np.empty_like(u)
    for s, (first, last) in enumerate(pairwise(offsets)):
        past = np.zeros((taps - 1, width), u.dtype) if state is None else state[s]
        known = np.concatenate([past, u[first:last]])
        p[first:last] = sum(w[j] * known[j : j + last - first] for j in range(taps))
    return p


def conv_silu_grad_ref(
    dy: np.ndarray, u: np.ndarray, w: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Compute the gradient with respect to u, for sequences without a state."""
    taps, width = w.shape
    p = _mixed_ref(u, w, offsets, None)
    sigmoid = 1 / (1 + np.exp(-p))
    slope = sigmoid * (1 + p * (1 - sigmoid))
    du = np.empty_like(u)
    for first, last in pairwise(offsets):
        e = np.concatenate([(dy * slope)[first:last], np.zeros((taps - 1, width), u.dtype)])
        n = last - first
        du[first:last] = sum(w[j] * e[taps - 1 - j : taps - 1 - j + n] for j in range(taps))
    return du


@kernel()
def _add(w, x, out):
    for i in range(out.shape[0]):
        out[i] += w[i] * x[i]


@kernel()
def _mix(u, w, first, n, past, column, out):
    """Compute p for token n in a sequence that begins at `first`, given the state `past`."""
    taps, end = w.shape[0], column + out.shape[0]
    out[:] = np.float32(0.0)
    for j in range(taps):
        at = n - (taps - 1) + j
        if at >= first:
            _add(w[j, column:end], u[at, column:end], out)
        elif past.shape[0] > 0:
            _add(w[j, column:end], past[taps - 1 + at - first, column:end], out)


@kernel()
def silu(y):
    """Overwrite y with silu(y)."""
    for i in range(y.shape[0]):
        p = y[i]
        y[i] = p / (_ONE + exp_f32(-p))


@kernel()
def _serial(u, w, offsets, sequence, before, column, y):
    for n in range(u.shape[0]):
        s = sequence[n]
        _mix(u, w, offsets[s], n, before[min(s, before.shape[0] - 1)], column, y[n])
        silu(y[n])


@kernel(parallel=True)
def _parallel(u, w, offsets, sequence, before, column, y):
    for n in prange(u.shape[0]):
        s = sequence[n]
        _mix(u, w, offsets[s], n, before[min(s, before.shape[0] - 1)], column, y[n])
        silu(y[n])


@kernel()
def _slope(p, dy):
    for i in range(dy.shape[0]):
        s = _ONE / (_ONE + exp_f32(-p[i]))
        dy[i] = dy[i] * (s * (_ONE + p[i] * (_ONE - s)))


@kernel(parallel=True)
def _through_silu(u, w, offsets, sequence, none, column, dy, p):
    for n in prange(u.shape[0]):
        _mix(u, w, offsets[sequence[n]], n, none, column, p[n])
        _slope(p[n], dy[n])


@kernel(parallel=True)
def _through_taps(e, w, offsets, sequence, column, du):
    taps, end = w.shape[0], column + e.shape[1]
    for n in prange(e.shape[0]):
        out = du[n, column:end]
        out[:] = np.float32(0.0)
        for j in range(taps):
            at = n + taps - 1 - j
            if at < offsets[sequence[n] + 1]:
                _add(w[j, column:end], e[at], out)


def conv_silu(
    u: np.ndarray,
    w: np.ndarray,
    offsets: np.ndarray,
    y: np.ndarray,
    *,
    before: np.ndarray | None = None,
    column: int = 0,
) -> None:
    """Compute y `[N, M]` from the M columns of u `[N, W]` and w `[K, W]` that begin at `column`.

    `before` `[S, K - 1, W]` contains the state before each sequence; None means zeros.

    Raises ValueError for mismatched arrays.
    """
    _check("conv_silu", u, w, offsets, y, column)
    if before is not None:
        shape = (len(offsets) - 1, w.shape[0] - 1, w.shape[1])
        check_array("conv_silu", "before", before, shape)
    run = _serial if y.size <= SERIAL else _parallel
    given = _NO_STATE if before is None else before
    run(readonly(u), readonly(w), readonly(offsets), sequences(offsets), readonly(given), column, y)


def conv_silu_grad(
    dy: np.ndarray,
    u: np.ndarray,
    w: np.ndarray,
    offsets: np.ndarray,
    *,
    du: np.ndarray,
    memory: np.ndarray,
    column: int = 0,
) -> None:
    """Write the M columns of du `[N, W]` that begin at `column`, given dy `[N, M]`.

    dy is overwritten with the gradient with respect to p. `memory` is scratch memory with the same
    shape as dy. The sequences have no state. Raises ValueError for mismatched arrays.
    """
    _check("conv_silu_grad", u, w, offsets, dy, column)
    check_output("conv_silu_grad", "du", du, u.shape)
    check_output("conv_silu_grad", "memory", memory, dy.shape)
    of = sequences(offsets)
    _through_silu(readonly(u), readonly(w), readonly(offsets), of, _NO_PAST, column, dy, memory)
    _through_taps(readonly(dy), readonly(w), readonly(offsets), of, column, du)


_NO_STATE = readonly(np.empty((1, 0, 1), np.float32))
_NO_PAST = readonly(np.empty((0, 1), np.float32))


def _check(
    op: str, u: np.ndarray, w: np.ndarray, offsets: np.ndarray, y: np.ndarray, column: int
) -> None:
    if np.ndim(w) != 2 or w.shape[0] < 2 or w.shape[1] == 0:
        raise ValueError(f"{op}: w has shape {np.shape(w)}, expected [K, W] with K at least 2")
    if np.ndim(u) != 2 or np.ndim(y) != 2 or not 0 <= column <= w.shape[1] - y.shape[1]:
        raise ValueError(
            f"{op}: y has shape {np.shape(y)} and u has shape {np.shape(u)}, expected [N, M] and "
            f"[N, W] with M + {column} <= W"
        )
    check_array(op, "u", u, (u.shape[0], w.shape[1]))
    check_array(op, "w", w, w.shape)
    check_output(op, "y", y, (u.shape[0], y.shape[1]))
    check_array(op, "offsets", offsets, (len(offsets),), dtype=np.int32)
    if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(u) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{op}: offsets do not divide {len(u)} tokens into sequences")


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    lengths, width = {
        "tiny": ([1, 4], 2),
        "one": ([1], 32),
        "odd": ([2, 35, 1], 101),
        "wide": ([40, 30], 1024),
    }[size]
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    u = rng.standard_normal((sum(lengths), width)).astype(dtype)
    return {"u": u, "w": rng.standard_normal((4, width)).astype(dtype), "offsets": offsets}


def _forward(u: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    y = np.empty(np.shape(u), np.float32)
    conv_silu(u, w, offsets, y)
    return y


def _gradients(dy: np.ndarray, u: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> Gradients:
    check_array("conv_silu_grad", "dy", dy, u.shape)
    du = np.empty_like(u)
    conv_silu_grad(dy.copy(), u, w, offsets, du=du, memory=np.empty_like(dy))
    return {"u": du}


def _gradients_ref(dy: np.ndarray, u: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> Gradients:
    return {"u": conv_silu_grad_ref(dy, u, w, offsets)}


OPS = (
    Op(
        name="conv_silu",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=conv_silu_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=2e-6,
        why="sums of four products; exp_f32 is accurate to 2.7e-7",
        ggml="ggml_ssm_conv with w, then ggml_silu",
    ),
)
