"""The gated short convolution of LFM2, which combines the last few tokens in each channel.

A token's input consists of the parts b, c and x, with C channels each:

    u[t] = b[t] x[t]        v[t] = sum over j of w[j] u[t - K + 1 + j]        y[t] = c[t] v[t]

where w contains K taps and j runs from 0 to K - 1. For positions before the first token of a
sequence, u is 0 or is read from the state, which contains the last K - 1 values of u from the
preceding part of the sequence.

Gradient, with e[t] = dy[t] c[t], which is 0 after the end of the sequence:

    dc[t] = dy[t] v[t]
    du[t] = sum over j of w[j] e[t + K - 1 - j]        db[t] = du[t] x[t]        dx[t] = du[t] b[t]

The taps are frozen, so they have no gradient.

The N tokens of S sequences are concatenated. bcx is `[N, 3 C]`, w is `[K, C]`, y is `[N, C]`, and a
state is `[S, K - 1, C]`, all float32; offsets is int32 `[S + 1]`. Tokens are processed in parallel.
Each sum runs over the taps in order, regardless of what else is in the batch.

llama.cpp: `ggml_ssm_conv` on `b * x`, in `llama_model_lfm2`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly


def short_conv_ref(
    bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray, state: np.ndarray | None = None
) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of the inputs."""
    _, c, _ = np.split(bcx, 3, axis=1)
    return np.asarray(c * _mixed_ref(bcx, w, offsets, state))


def _mixed_ref(
    bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    taps, width = w.shape
    b, _, x = np.split(bcx, 3, axis=1)
    v = np.empty((len(bcx), width), bcx.dtype)
    for s, (first, last) in enumerate(pairwise(offsets)):
        past = np.zeros((taps - 1, width), bcx.dtype) if state is None else state[s]
        u = np.concatenate([past, (b * x)[first:last]])
        v[first:last] = sum(w[j] * u[j : j + last - first] for j in range(taps))
    return v


def short_conv_grad_ref(
    dy: np.ndarray, bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Compute the gradient with respect to bcx, for sequences without a state."""
    taps, width = w.shape
    b, c, x = np.split(bcx, 3, axis=1)
    du = np.empty((len(bcx), width), bcx.dtype)
    for first, last in pairwise(offsets):
        e = np.concatenate([(dy * c)[first:last], np.zeros((taps - 1, width), bcx.dtype)])
        n = last - first
        du[first:last] = sum(w[j] * e[taps - 1 - j : taps - 1 - j + n] for j in range(taps))
    return np.concatenate([du * x, dy * _mixed_ref(bcx, w, offsets, None), du * b], axis=1)


@kernel()
def _add_product(w, b, x, out):
    for c in range(out.shape[0]):
        out[c] += w[c] * (b[c] * x[c])


@kernel()
def _add_past(w, u, out):
    for c in range(out.shape[0]):
        out[c] += w[c] * u[c]


@kernel()
def _mix(bcx, w, first, n, past, out):
    """Compute v for token n in a sequence that begins at `first`, given the state `past`."""
    taps, width = w.shape
    for c in range(width):
        out[c] = np.float32(0.0)
    for j in range(taps):
        at = n - (taps - 1) + j
        if at >= first:
            _add_product(w[j], bcx[at, :width], bcx[at, 2 * width :], out)
        elif past.shape[0] > 0:
            _add_past(w[j], past[taps - 1 + at - first], out)


@kernel()
def _forward_row(bcx, w, first, n, past, y):
    _mix(bcx, w, first, n, past, y)
    width = w.shape[1]
    c = bcx[n, width : 2 * width]
    for i in range(width):
        y[i] = c[i] * y[i]


@kernel()
def _past(before, s):
    return before[min(s, before.shape[0] - 1)]


@kernel()
def _serial(bcx, w, offsets, sequence, before, y):
    for n in range(bcx.shape[0]):
        s = sequence[n]
        _forward_row(bcx, w, offsets[s], n, _past(before, s), y[n])


@kernel(parallel=True)
def _parallel(bcx, w, offsets, sequence, before, y):
    for n in prange(bcx.shape[0]):
        s = sequence[n]
        _forward_row(bcx, w, offsets[s], n, _past(before, s), y[n])


@kernel()
def _add_later(w, dy, c, du):
    for i in range(du.shape[0]):
        du[i] += w[i] * (dy[i] * c[i])


@kernel()
def _grad_row(dy, bcx, w, first, last, n, none, out):
    taps, width = w.shape
    db, dc, dx = out[:width], out[width : 2 * width], out[2 * width :]
    b, x = bcx[n, :width], bcx[n, 2 * width :]
    for i in range(width):
        db[i] = np.float32(0.0)
    for j in range(taps):
        at = n + taps - 1 - j
        if at < last:
            _add_later(w[j], dy[at], bcx[at, width : 2 * width], db)
    for i in range(width):
        du = db[i]
        dx[i] = du * b[i]
        db[i] = du * x[i]
    _mix(bcx, w, first, n, none, dc)
    for i in range(width):
        dc[i] = dy[n, i] * dc[i]


@kernel(parallel=True)
def _grad(dy, bcx, w, offsets, sequence, none, out):
    for n in prange(bcx.shape[0]):
        s = sequence[n]
        _grad_row(dy, bcx, w, offsets[s], offsets[s + 1], n, none, out[n])


def short_conv(
    bcx: np.ndarray,
    w: np.ndarray,
    offsets: np.ndarray,
    y: np.ndarray,
    *,
    before: np.ndarray | None = None,
    after: np.ndarray | None = None,
) -> None:
    """Write y `[N, C]`, given bcx `[N, 3 C]`, w `[K, C]` and the sequence offsets `[S + 1]`.

    `before` `[S, K - 1, C]` contains the state before each sequence; None means zeros. `after`, a
    different array with the same shape, receives the state after each sequence.

    Raises ValueError for mismatched arrays.
    """
    n, taps, width = _check("short_conv", bcx, w, offsets)
    check_output("short_conv", "y", y, (n, width))
    shape = (len(offsets) - 1, taps - 1, width)
    for name, state in (("before", before), ("after", after)):
        if state is not None:
            check_array("short_conv", name, state, shape)
    run = _serial if y.size <= SERIAL else _parallel
    given = _NO_STATE if before is None else before
    run(readonly(bcx), readonly(w), readonly(offsets), sequences(offsets), readonly(given), y)
    if after is not None:
        product = bcx[:, :width] * bcx[:, 2 * width :]
        leave_state(product, offsets, before, after)


def leave_state(
    u: np.ndarray, offsets: np.ndarray, before: np.ndarray | None, after: np.ndarray
) -> None:
    """Write the last K - 1 rows of u `[N, C]` for each sequence to `after` `[S, K - 1, C]`."""
    kept = after.shape[1]
    for s, (first, last) in enumerate(pairwise(offsets.tolist())):
        own = min(kept, last - first)
        if own < kept:
            after[s, : kept - own] = 0 if before is None else before[s, own:]
        after[s, kept - own :] = u[last - own : last]


def short_conv_grad(
    dy: np.ndarray, bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray, *, dbcx: np.ndarray
) -> None:
    """Write dbcx `[N, 3 C]`, the gradient with respect to bcx, given dy `[N, C]`.

    Raises ValueError for mismatched arrays.
    """
    n, _, width = _check("short_conv_grad", bcx, w, offsets)
    check_array("short_conv_grad", "dy", dy, (n, width))
    check_output("short_conv_grad", "dbcx", dbcx, (n, 3 * width))
    _grad(
        readonly(dy), readonly(bcx), readonly(w), readonly(offsets), sequences(offsets), _NO_PAST,
        dbcx,
    )  # fmt: skip


_NO_STATE = readonly(np.empty((1, 0, 1), np.float32))
_NO_PAST = readonly(np.empty((0, 1), np.float32))


def sequences(offsets: np.ndarray) -> np.ndarray:
    """Return the index of the sequence that each token belongs to, int32 `[N]`."""
    counts = np.diff(offsets)
    return readonly(np.repeat(np.arange(len(counts), dtype=np.int32), counts))


def _check(op: str, bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> tuple[int, int, int]:
    if np.ndim(w) != 2 or w.shape[0] < 2 or w.shape[1] == 0:
        raise ValueError(f"{op}: w has shape {np.shape(w)}, expected [K, C] with K at least 2")
    if np.ndim(bcx) != 2:
        raise ValueError(f"{op}: bcx has shape {np.shape(bcx)}, expected [N, 3 C]")
    check_array(op, "bcx", bcx, (bcx.shape[0], 3 * w.shape[1]))
    check_array(op, "w", w, w.shape)
    check_array(op, "offsets", offsets, (len(offsets),), dtype=np.int32)
    if offsets[0] != 0 or offsets[-1] != len(bcx) or (np.diff(offsets) < 0).any():
        raise ValueError(f"{op}: offsets do not divide {len(bcx)} tokens into sequences")
    return bcx.shape[0], w.shape[0], w.shape[1]


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    lengths, width = {
        "tiny": ([1, 4], 2),
        "one": ([1], 32),
        "odd": ([2, 35, 1], 101),
        "wide": ([40, 30], 1024),
    }[size]
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    bcx = rng.standard_normal((sum(lengths), 3 * width)).astype(dtype)
    return {"bcx": bcx, "w": rng.standard_normal((3, width)).astype(dtype), "offsets": offsets}


def _forward(bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    y = np.empty((len(bcx), np.shape(w)[-1]), np.float32)
    short_conv(bcx, w, offsets, y)
    return y


def _gradients(dy: np.ndarray, bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray) -> Gradients:
    out = np.empty_like(bcx)
    short_conv_grad(dy, bcx, w, offsets, dbcx=out)
    return {"bcx": out}


def _gradients_ref(
    dy: np.ndarray, bcx: np.ndarray, w: np.ndarray, offsets: np.ndarray
) -> Gradients:
    return {"bcx": short_conv_grad_ref(dy, bcx, w, offsets)}


OPS = (
    Op(
        name="short_conv",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=short_conv_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=1e-6,
        why="sums of three products",
        ggml="ggml_mul(b, x), ggml_ssm_conv with w, ggml_mul by c",
    ),
)
