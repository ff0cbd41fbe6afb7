"""Encoders of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 (layouts: `nbllama.quants.legacy`).

| type | d | m | code |
|---|---|---|---|
| Q4_0 | e / -8 | | round(x / d) + 8 |
| Q5_0 | e / -16 | | round(x / d) + 16 |
| Q4_1 | (max - min) / 15 | min | round((x - m) / d) |
| Q5_1 | (max - min) / 31 | min | round((x - m) / d) |
| Q8_0 | abs(e) / 127 | | round(x / d) |

Here, e is the weight with the largest absolute value. Codes are computed with the value of `d`
before it is rounded to a half.

llama.cpp: `quantize_row_q4_0_ref`, `_q4_1`, `_q5_0`, `_q5_1`, `_q8_0`. The bytes are identical.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants.encode._half import put_half
from nbllama.quants.encode._search import extreme

_0, _1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)


@kernel(own="quants/encode")
def _take(x, at, group):
    for j in range(32):
        group[j] = x[np.uint64(at + j)]


@kernel(own="quants/encode")
def _inverse(d):
    """Return 1 / d, or 0 if d is 0 or so small that 1 / d overflows.

    Such a d becomes 0 when it is rounded to a half, so the codes have no effect.
    """
    inverse = _1 / d if d != 0 else _0
    return inverse if abs(inverse) < np.float32(np.inf) else _0


@kernel(own="quants/encode")
def _symmetric(group, high, codes):
    """Compute codes = round(x / d) + high, limited to 2 high - 1; return d."""
    d = extreme(group, 32) / -high
    inverse = _inverse(d)
    middle, top = high + _HALF, high + high - _1
    for j in range(32):
        codes[j] = np.uint8(min(top, np.floor(group[j] * inverse + middle)))
    return d


@kernel(own="quants/encode")
def _affine(group, top, codes):
    """Compute codes = round((x - least) / d), limited to `top`; return d and least."""
    least = most = group[0]
    for j in range(1, 32):
        least, most = min(least, group[j]), max(most, group[j])
    d = (most - least) / top
    inverse = _inverse(d)
    for j in range(32):
        codes[j] = np.uint8(min(top, np.floor((group[j] - least) * inverse + _HALF)))
    return d, least


@kernel(own="quants/encode")
def _pack(codes, out, to):
    """Pack the four low bits of 32 codes into 16 bytes."""
    for j in range(16):
        out[np.uint64(to + j)] = np.uint8((codes[j] & 15) | ((codes[j + 16] & 15) << 4))


@kernel(own="quants/encode")
def _put_fifth_bits(codes, out, to):
    for k in range(4):
        byte = np.uint8(0)
        for j in range(8):
            byte |= np.uint8((codes[8 * k + j] >> 4) << j)
        out[np.uint64(to + k)] = byte


@kernel(own="quants/encode")
def encode_q4_0(x, src, n_blocks, out, dst):
    """Encode blocks with w = d * (q - 8)."""
    group, codes = np.empty(32, np.float32), np.empty(32, np.uint8)
    for b in range(n_blocks):
        to = dst + 18 * b
        _take(x, src + 32 * b, group)
        put_half(out, to, _symmetric(group, np.float32(8), codes))
        _pack(codes, out, to + 2)


@kernel(own="quants/encode")
def encode_q4_1(x, src, n_blocks, out, dst):
    """Encode blocks with w = d * q + m."""
    group, codes = np.empty(32, np.float32), np.empty(32, np.uint8)
    for b in range(n_blocks):
        to = dst + 20 * b
        _take(x, src + 32 * b, group)
        d, m = _affine(group, np.float32(15), codes)
        put_half(out, to, d)
        put_half(out, to + 2, m)
        _pack(codes, out, to + 4)


@kernel(own="quants/encode")
def encode_q5_0(x, src, n_blocks, out, dst):
    """Encode blocks with w = d * (q - 16)."""
    group, codes = np.empty(32, np.float32), np.empty(32, np.uint8)
    for b in range(n_blocks):
        to = dst + 22 * b
        _take(x, src + 32 * b, group)
        put_half(out, to, _symmetric(group, np.float32(16), codes))
        _put_fifth_bits(codes, out, to + 2)
        _pack(codes, out, to + 6)


@kernel(own="quants/encode")
def encode_q5_1(x, src, n_blocks, out, dst):
    """Encode blocks with w = d * q + m."""
    group, codes = np.empty(32, np.float32), np.empty(32, np.uint8)
    for b in range(n_blocks):
        to = dst + 24 * b
        _take(x, src + 32 * b, group)
        d, m = _affine(group, np.float32(31), codes)
        put_half(out, to, d)
        put_half(out, to + 2, m)
        _put_fifth_bits(codes, out, to + 4)
        _pack(codes, out, to + 8)


@kernel(own="quants/encode")
def encode_q8_0(x, src, n_blocks, out, dst):
    """Encode blocks with w = d * q."""
    group = np.empty(32, np.float32)
    for b in range(n_blocks):
        to = dst + 34 * b
        _take(x, src + 32 * b, group)
        d = abs(extreme(group, 32)) / np.float32(127)
        inverse = _inverse(d)
        put_half(out, to, d)
        for j in range(32):
            scaled = group[j] * inverse
            size = np.floor(abs(scaled) + _HALF)  # ties away from zero, like C's roundf
            q = np.int32(size if scaled >= 0 else -size)
            out[np.uint64(to + 2 + j)] = np.uint8(q & 255)
