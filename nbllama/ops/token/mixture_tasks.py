"""The tasks that occur only in mixture-of-experts (MoE) models, one function per kind of phase."""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.ops.experts.gate import CLAMPED, clamped_row, silu_row
from nbllama.ops.experts.router import route_row
from nbllama.ops.token.tasks import dot, floats, int32_numbers, to_int8

SUM_PART = 1024  # numbers of the residual stream per task

_ONE = np.float32(1.0)


@kernel()
def route_task(p):
    """Choose the experts, sort them by index, and compute the shared expert's weight, if any."""
    chosen, w = int32_numbers(p.chosen, p.used), floats(p.weights, p.used)
    bias = floats(p.bias, p.experts if p.bias else 0)
    route_row(floats(p.z, p.experts), bias, p.code, p.normed, p.scale, chosen, w)
    for k in range(1, p.used):
        expert, weight, at = chosen[k], w[k], k
        while at > 0 and chosen[at - 1] > expert:
            chosen[at], w[at] = chosen[at - 1], w[at - 1]
            at -= 1
        chosen[at], w[at] = expert, weight
    if p.gate_w != 0:
        z = dot(floats(p.gate_w, p.n), floats(p.x, p.n), p.n)
        floats(p.shared, 1)[0] = _ONE / (_ONE + np.float32(np.exp(-z)))


@kernel()
def expert_task(p, step):
    """Compute the activation of one expert."""
    gate, up, out = floats(p.gate, p.n), floats(p.up, p.n), floats(p.out, p.at + p.n)
    weight = floats(p.weight, 1)[0] if p.weight != 0 else _ONE
    if p.code == CLAMPED:
        clamped_row(gate, up, weight, out[p.at :])
    else:
        silu_row(gate, up, weight, out[p.at :])
    to_int8(out, p.at, p.at + p.n, p.forms, step)


@kernel()
def _add(y, total):
    for c in range(total.shape[0]):
        total[c] += y[c]


@kernel()
def _add_scaled(factor, y, total):
    for c in range(total.shape[0]):
        total[c] += factor * y[c]


@kernel()
def sum_task(p, task):
    """Add one part of the experts' outputs to the residual stream, in ascending expert order."""
    lo, hi = task * SUM_PART, min((task + 1) * SUM_PART, p.n)
    total = floats(p.y, p.n)[lo:hi]
    chosen, w = int32_numbers(p.chosen, p.used), floats(p.weights, p.used)
    for k in range(p.used):
        y = floats(p.y + 4 * k * p.n, p.n)[lo:hi]
        if p.bias != 0:
            _add_scaled(w[k], floats(p.bias + 4 * np.int64(chosen[k]) * p.n, p.n)[lo:hi], y)
        if k > 0:
            _add(y, total)
    if p.shared != 0:
        _add(floats(p.shared, p.n)[lo:hi], total)
    _add_scaled(p.scale, total, floats(p.x, p.n)[lo:hi])
