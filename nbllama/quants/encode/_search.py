"""Search several candidates for the best scale of a group of weights.

There are two kinds of groups, as in `nbllama.quants.kquants`:

- affine, `x ~ scale * q - low` with q in 0..high: the smallest weight (or 0) maps to 0, and the
  largest maps to about `high`. For each candidate, two linear equations determine the best scale
  and low for its codes (llama.cpp: `make_qkx2_quants`).
- symmetric, `x ~ scale * q` with q in -high..high-1: the weight with the largest absolute value
  maps to about -high (llama.cpp: `make_qx_quants`, `make_q3_quants`).

`x` and `w` (the importance) are float32 scratch arrays. Their first `n` elements are the group,
where `n` is a literal 16 or 32. All functions must be called inside kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from nbllama.kernels.jit import kernel
from nbllama.quants.encode._vec import code_error, code_sums

TINY = np.float32(1e-15)  # in every type, a group of smaller weights is encoded as zeros


def affine_scale(
    n: int, x: Any, w: Any, high: Any, start: Any, step: Any, n_steps: Any, power: int
) -> Any:
    """Return (scale, low) of an affine group, both non-negative.

    Candidate i of `n_steps` maps the largest weight to high + start + step * i. The error of a
    candidate is the sum of w * |difference| ** power, where `power` is a literal 1 or 2.
    """
    raise NotImplementedError("for kernels only")


@overload(affine_scale, prefer_literal=True)
def _affine_scale(n, x, w, high, start, step, n_steps, power):
    size, exponent = n.literal_value, power.literal_value
    zero = np.float32(0)

    def search(n, x, w, high, start, step, n_steps, power):
        least = most = x[0]
        sum_w = sum_wx = zero
        for i in range(size):
            least, most = min(least, x[i]), max(most, x[i])
            sum_w += w[i]
            sum_wx += w[i] * x[i]
        least = min(least, zero)
        span = most - least
        if span < TINY:
            return zero, -least
        scale, offset = span / high, least
        best = code_error(size, x, w, least, high / span, high, scale, offset, exponent)
        for i in range(n_steps):
            if most - offset < TINY:
                break
            least = offset
            inverse = (high + start + step * np.float32(i)) / (most - least)
            sum_q, sum_qq, sum_qx = code_sums(size, x, w, least, inverse, zero, high)
            determinant = sum_w * sum_qq - sum_q * sum_q
            if determinant > 0:
                a = (sum_w * sum_qx - sum_wx * sum_q) / determinant
                b = (sum_qq * sum_wx - sum_q * sum_qx) / determinant
                if b > 0:
                    a, b = sum_qx / sum_qq, zero
                error = code_error(size, x, w, least, inverse, high, a, b, exponent)
                if error < best:
                    best, scale, offset = error, a, b
        return scale, -offset

    return search


@kernel(own="quants/encode")
def extreme(x, n):
    """Return the element with the largest absolute value among the first n elements.

    If several elements have the same absolute value, the first one is returned.
    """
    size, found = np.float32(0), np.float32(0)
    for i in range(n):
        if abs(x[i]) > size:
            size, found = abs(x[i]), x[i]
    return found


@kernel(own="quants/encode")
def symmetric_scale(x, w, high):
    """Return the best of 19 candidate scales for a group of 16; it can be negative.

    For given codes, the best scale is sum(w x q) / sum(w q q). With this scale, the codes explain
    sum(w x q)^2 / sum(w q q) of sum(w x x). The candidate that explains the most is chosen.
    """
    zero = np.float32(0)
    largest = extreme(x, 16)
    if abs(largest) < TINY:
        return zero
    scale = best = zero
    for i in range(20):
        j = i - 10 if i > 0 else 0  # 0 is tried first, and again as i = 10, so that it wins ties
        inverse = -(high + np.float32(0.1) * np.float32(j)) / largest
        _, qq, qx = code_sums(16, x, w, zero, inverse, -high, high - np.float32(1))
        if qq > 0 and qx * qx > best * qq:
            scale = qx / qq
            best = scale * qx
    return scale


@kernel(own="quants/encode")
def refined_scale(x, codes, high):
    """Return the scale of a group of 16 with importance x^2, after improving its codes one by one.

    `codes` is float32 scratch memory [16]. Each code in turn is replaced with the nearest code for
    the scale that is best for the other codes. The change is kept if the codes then explain more of
    the group (see `symmetric_scale`).
    """
    zero, top = np.float32(0), high - np.float32(1)
    largest = extreme(x, 16)
    if abs(largest) < TINY:
        return zero
    inverse = -high / largest
    qx = qq = zero
    for i in range(16):
        q = max(-high, min(top, np.float32(np.rint(inverse * x[i]))))
        codes[i] = q
        qx += x[i] * x[i] * x[i] * q
        qq += x[i] * x[i] * q * q
    for _ in range(5):
        moved = False
        for i in range(16):
            v, old = x[i], codes[i]
            w = v * v
            rest_x, rest_q = qx - w * v * old, qq - w * old * old
            if rest_x > 0:
                q = max(-high, min(top, np.float32(np.rint(v * rest_q / rest_x))))
                if q != old:
                    new_x, new_q = rest_x + w * v * q, rest_q + w * q * q
                    if new_q > 0 and new_x * new_x * qq > qx * qx * new_q:
                        codes[i], qx, qq, moved = q, new_x, new_q, True
        if not moved:
            break
    return qx / qq if qq > 0 else zero
