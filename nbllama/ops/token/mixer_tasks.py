"""The tasks for phases that occur only in blocks without attention."""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.activation import silu_row
from nbllama.ops.delta_net.conv import silu
from nbllama.ops.delta_net.delta_net import dots
from nbllama.ops.delta_net.delta_net import step as rows_step
from nbllama.ops.delta_net.gates import gates_of
from nbllama.ops.rms_norm import norm_row
from nbllama.ops.token.tasks import GATE_PART, floats, to_int8

DELTA_PART = 32  # rows of a head's state per task; must be even


@kernel()
def _tap(w, u, out):
    for c in range(out.shape[0]):
        out[c] += w[c] * u[c]


@kernel()
def _copy(x, y):
    for c in range(y.shape[0]):
        y[c] = x[c]


@kernel()
def _convolve(w, state, n, taps, lo, hi, new, out):
    """Convolve columns lo to hi - 1 of the state and the new values, and write the result to `out`.

    In these columns, the oldest row of `state` `[K - 1, n]` is dropped, and `new` becomes the
    last row.
    """
    out[:] = np.float32(0.0)
    for j in range(taps - 1):
        _tap(floats(w + 4 * j * n, n)[lo:hi], floats(state + 4 * j * n, n)[lo:hi], out)
    _tap(floats(w + 4 * (taps - 1) * n, n)[lo:hi], new, out)
    for j in range(taps - 2):
        past = floats(state + 4 * (j + 1) * n, n)
        _copy(past[lo:hi], floats(state + 4 * j * n, n)[lo:hi])
    _copy(new, floats(state + 4 * (taps - 2) * n, n)[lo:hi])


@kernel()
def _multiply(x, y, out):
    for c in range(out.shape[0]):
        out[c] = x[c] * y[c]


@kernel()
def conv_task(p, task, step):
    """Compute one part of the gated short convolution."""
    lo, hi = task * GATE_PART, min((task + 1) * GATE_PART, p.n)
    b, c, x = (
        floats(p.bcx, p.n), floats(p.bcx + 4 * p.n, p.n), floats(p.bcx + 8 * p.n, p.n)
    )  # fmt: skip
    y = floats(p.y, p.n)
    _multiply(b[lo:hi], x[lo:hi], x[lo:hi])
    _convolve(p.w, p.state, p.n, p.taps, lo, hi, x[lo:hi], y[lo:hi])
    _multiply(c[lo:hi], y[lo:hi], y[lo:hi])
    to_int8(y, lo, hi, p.forms, step)


@kernel()
def delta_conv_task(p, head):
    """Compute the queries, keys or values of one head in a delta net."""
    lo, hi = head * p.size, (head + 1) * p.size
    y = floats(p.y, p.n)[lo:hi]
    _convolve(p.w, p.state, p.n, p.taps, lo, hi, floats(p.u, p.n)[lo:hi], y)
    silu(y)
    if head < p.normed:
        norm_row(y, floats(p.one, p.size), p.eps, y)


@kernel()
def delta_task(p, task):
    """Update some rows of a head's state with the token, and compute their outputs."""
    parts = (p.size + DELTA_PART - 1) // DELTA_PART
    h, part = task // parts, task % parts
    g, beta = gates_of(
        floats(p.alpha, p.heads)[h], floats(p.beta, p.heads)[h],
        floats(p.a, p.heads)[h], floats(p.dt, p.heads)[h],
    )  # fmt: skip
    fade = exp_f32(g)
    at = 4 * p.size * (h % p.key_heads)
    q, k = floats(p.qkv + at, p.size), floats(p.qkv + 4 * p.size * p.key_heads + at, p.size)
    v = floats(p.qkv + 4 * p.size * (2 * p.key_heads + h), p.size)
    o = floats(p.o + 4 * p.size * h, p.size)
    s = floats(p.state + 4 * p.size * p.size * h, p.size * p.size)
    for m in range(part * DELTA_PART, min((part + 1) * DELTA_PART, p.size), 2):
        u0, u1 = dots(s, m * p.size, k, 0, p.size)
        d0, d1 = beta * (v[m] - fade * u0), beta * (v[m + 1] - fade * u1)
        o0, o1 = rows_step(s, m * p.size, fade, d0, d1, k, q, 0, p.size)
        o[m], o[m + 1] = p.scale * o0, p.scale * o1


@kernel()
def delta_out_task(p, task, step):
    """Normalise `part` heads of a delta net's output, and multiply by the SiLU of the gates."""
    n = p.heads * p.size
    out, w = floats(p.out, n), floats(p.w, p.size)
    first, last = task * p.part, min((task + 1) * p.part, p.heads)
    for h in range(first, last):
        at = 4 * h * p.size
        y = floats(p.out + at, p.size)
        norm_row(floats(p.o + at, p.size), w, p.eps, y)
        silu_row(floats(p.z + at, p.size), y, y)
    to_int8(out, first * p.size, last * p.size, p.forms, step)
