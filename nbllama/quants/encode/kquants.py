"""Encoders of the K-quants (layouts: `nbllama.quants.kquants`).

Every super-block of 256 weights is encoded in the same steps. A search determines a scale (and, in
affine groups, a low) for each group of 16 or 32. These scales are rounded to 4, 6 or 8 bits
relative to the largest scale. The codes are then recomputed with the rounded scales to compensate
for the rounding. The search weights errors in the same way as llama.cpp without an importance
matrix: by |x| (Q2_K), x^2 (Q3_K, Q6_K), or |x| plus the root mean square of the group (Q4_K, Q5_K).

llama.cpp: `quantize_row_q2_K_ref`, `_q3_K`, `_q4_K`, `_q5_K`, `_q6_K`. The errors agree with
those of llama.cpp to within a fraction of a per cent. The bytes can differ, because sums are
computed in a different order.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants.encode._half import put_half
from nbllama.quants.encode._search import (
    TINY,
    affine_scale,
    extreme,
    refined_scale,
    symmetric_scale,
)

_0 = np.float32(0)


@kernel(own="quants/encode")
def _take(x, at, n, group):
    """Copy n weights, starting at `x[at]`, to `group`; return the sum of their squares."""
    squares = _0
    for j in range(n):
        v = x[np.uint64(at + j)]
        group[j] = v
        squares += v * v
    return squares


@kernel(own="quants/encode")
def _affine_codes(x, at, n, scale, low, high, codes, to):
    """Set codes[to : to + n] to the best q in 0..high for `scale * q - low`, or 0 if scale is 0."""
    inverse = np.float32(1) / scale if scale > 0 else _0
    for j in range(n):
        q = np.rint((x[np.uint64(at + j)] + low) * inverse)
        codes[np.uint64(to + j)] = np.uint8(max(_0, min(high, q)))


@kernel(own="quants/encode")
def _symmetric_codes(x, at, scale, high, codes, to):
    """Set codes[to : to + 16] to high + q, where q in -high..high-1 is best for `scale * q`."""
    inverse = np.float32(1) / scale if scale != 0 else _0
    top = high - np.float32(1)
    for j in range(16):
        q = np.rint(x[np.uint64(at + j)] * inverse)
        codes[np.uint64(to + j)] = np.uint8(high + max(-high, min(top, q)))


@kernel(own="quants/encode")
def _round_positive(values, n, high, rounded):
    """Divide n values by d = largest / high and round the quotients into `rounded`; return d."""
    largest = _0
    for g in range(n):
        largest = max(largest, values[g])
    inverse = high / largest if largest > TINY else _0
    for g in range(n):
        rounded[g] = np.uint8(min(high, np.rint(inverse * values[g])))
    return largest / high if largest > TINY else _0


@kernel(own="quants/encode")
def encode_q2_k(x, src, n_blocks, out, dst):
    """Encode Q2_K, which has affine groups of 16 with four-bit scales and lows."""
    group, w = np.empty(16, np.float32), np.empty(16, np.float32)
    scales, lows = np.empty(16, np.float32), np.empty(16, np.float32)
    s, m = np.empty(16, np.uint8), np.empty(16, np.uint8)
    codes = np.empty(256, np.uint8)
    top = np.float32(3)
    for b in range(n_blocks):
        at, to = src + 256 * b, dst + 84 * b
        for g in range(16):
            _take(x, at + 16 * g, 16, group)
            for j in range(16):
                w[j] = abs(group[j])
            scales[g], lows[g] = affine_scale(
                16, group, w, top, np.float32(-0.5), np.float32(0.1), 16, 1
            )
        d = put_half(out, to + 80, _round_positive(scales, 16, np.float32(15), s))
        dmin = put_half(out, to + 82, _round_positive(lows, 16, np.float32(15), m))
        for g in range(16):
            out[np.uint64(to + g)] = s[g] | (m[g] << 4)
            scale, low = d * np.float32(s[g]), dmin * np.float32(m[g])
            _affine_codes(x, at + 16 * g, 16, scale, low, top, codes, 16 * g)
        _pack_two_bits(codes, out, to + 16)


@kernel(own="quants/encode")
def _pack_two_bits(codes, out, to):
    """Pack the two low bits of 256 codes into 64 bytes."""
    for half in range(2):
        for j in range(32):
            q = np.uint8(0)
            for field in range(4):
                q |= np.uint8((codes[128 * half + 32 * field + j] & 3) << (2 * field))
            out[np.uint64(to + 32 * half + j)] = q


@kernel(own="quants/encode")
def encode_q3_k(x, src, n_blocks, out, dst):
    """Encode Q3_K, which has symmetric groups of 16 with signed six-bit scales."""
    group, work = np.empty(16, np.float32), np.empty(16, np.float32)
    scales = np.empty(16, np.float32)
    s = np.empty(16, np.int64)
    codes = np.empty(256, np.uint8)
    high = np.float32(4)
    for b in range(n_blocks):
        at, to = src + 256 * b, dst + 110 * b
        for g in range(16):
            _take(x, at + 16 * g, 16, group)
            scales[g] = refined_scale(group, work, high)
        d = _put_signed_scales(scales, np.float32(32), s, out, to + 108)
        for k in range(12):
            out[np.uint64(to + 96 + k)] = np.uint8(0)
        for g in range(16):
            _symmetric_codes(x, at + 16 * g, d * np.float32(s[g]), high, codes, 16 * g)
            six = s[g] + 32
            out[np.uint64(to + 96 + (g & 7))] |= np.uint8((six & 15) << (4 * (g >> 3)))
            out[np.uint64(to + 104 + (g & 3))] |= np.uint8((six >> 4) << (2 * (g >> 2)))
        for j in range(32):
            mask = np.uint8(0)
            for k in range(8):
                mask |= np.uint8((codes[32 * k + j] >> 2) << k)
            out[np.uint64(to + j)] = mask
        _pack_two_bits(codes, out, to + 32)


@kernel(own="quants/encode")
def _put_signed_scales(scales, high, s, out, at):
    """Divide 16 scales by d and round them to integers `s` in -high..high-1; store and return d.

    d is chosen such that the scale with the largest absolute value becomes -high.
    """
    largest = extreme(scales, 16)
    if abs(largest) < TINY:
        s[:] = 0
        return put_half(out, at, _0)
    inverse = -high / largest
    for g in range(16):
        s[g] = np.int64(max(-high, min(high - np.float32(1), np.rint(inverse * scales[g]))))
    return put_half(out, at, np.float32(1) / inverse)


@kernel(own="quants/encode")
def encode_q6_k(x, src, n_blocks, out, dst):
    """Encode Q6_K, which has symmetric groups of 16 with signed eight-bit scales."""
    group, w = np.empty(16, np.float32), np.empty(16, np.float32)
    scales = np.empty(16, np.float32)
    s = np.empty(16, np.int64)
    codes = np.empty(256, np.uint8)
    high = np.float32(32)
    for b in range(n_blocks):
        at, to = src + 256 * b, dst + 210 * b
        for g in range(16):
            _take(x, at + 16 * g, 16, group)
            for j in range(16):
                w[j] = group[j] * group[j]
            scales[g] = symmetric_scale(group, w, high)
        d = _put_signed_scales(scales, np.float32(128), s, out, to + 208)
        for g in range(16):
            out[np.uint64(to + 192 + g)] = np.uint8(s[g] & 255)
            _symmetric_codes(x, at + 16 * g, d * np.float32(s[g]), high, codes, 16 * g)
        for half in range(2):
            for j in range(32):
                k = 128 * half + j
                q0, q1, q2, q3 = codes[k], codes[k + 32], codes[k + 64], codes[k + 96]
                ql = to + 64 * half + j
                out[np.uint64(ql)] = np.uint8((q0 & 15) | ((q2 & 15) << 4))
                out[np.uint64(ql + 32)] = np.uint8((q1 & 15) | ((q3 & 15) << 4))
                top = (q0 >> 4) | ((q1 >> 4) << 2) | ((q2 >> 4) << 4) | ((q3 >> 4) << 6)
                out[np.uint64(to + 128 + 32 * half + j)] = np.uint8(top)


@kernel(own="quants/encode")
def _encode_32(x, at, top, start, n_steps, work, s, m, codes, out, to):
    """Compute the scales, lows and codes of 8 affine groups of 32.

    The codes are written to `codes`, and d, dmin, scales and lows to 16 bytes of `out`.
    """
    group, w, scales, lows = work[0], work[1], work[2], work[3]
    for g in range(8):
        squares = _take(x, at + 32 * g, 32, group)
        level = np.float32(np.sqrt(squares / np.float32(32)))
        for j in range(32):
            w[j] = level + abs(group[j])
        scales[g], lows[g] = affine_scale(32, group, w, top, start, np.float32(0.1), n_steps, 2)
    d = put_half(out, to, _round_positive(scales, 8, np.float32(63), s))
    dmin = put_half(out, to + 2, _round_positive(lows, 8, np.float32(63), m))
    for g in range(4):
        t = g + 4
        out[np.uint64(to + 4 + g)] = np.uint8(s[g] | ((s[t] >> 4) << 6))
        out[np.uint64(to + 8 + g)] = np.uint8(m[g] | ((m[t] >> 4) << 6))
        out[np.uint64(to + 12 + g)] = np.uint8((s[t] & 15) | ((m[t] & 15) << 4))
    for g in range(8):
        scale, low = d * np.float32(s[g]), dmin * np.float32(m[g])
        _affine_codes(x, at + 32 * g, 32, scale, low, top, codes, 32 * g)


@kernel(own="quants/encode")
def _pack_four_bits(codes, out, to):
    """Pack the four low bits of 256 codes into 128 bytes."""
    for pair in range(4):
        for j in range(32):
            k = 64 * pair + j
            q = (codes[k] & 15) | ((codes[k + 32] & 15) << 4)
            out[np.uint64(to + 32 * pair + j)] = np.uint8(q)


@kernel(own="quants/encode")
def encode_q4_k(x, src, n_blocks, out, dst):
    """Encode Q4_K, which has affine groups of 32 with six-bit scales and lows."""
    work = np.empty((4, 32), np.float32)
    s, m, codes = np.empty(8, np.uint8), np.empty(8, np.uint8), np.empty(256, np.uint8)
    for b in range(n_blocks):
        to = dst + 144 * b
        _encode_32(x, src + 256 * b, np.float32(15), np.float32(-1), 21, work, s, m, codes, out, to)
        _pack_four_bits(codes, out, to + 16)


@kernel(own="quants/encode")
def encode_q5_k(x, src, n_blocks, out, dst):
    """Encode Q5_K, which is like Q4_K but stores the fifth bits of its codes in separate bytes."""
    work = np.empty((4, 32), np.float32)
    s, m, codes = np.empty(8, np.uint8), np.empty(8, np.uint8), np.empty(256, np.uint8)
    for b in range(n_blocks):
        to = dst + 176 * b
        _encode_32(
            x, src + 256 * b, np.float32(31), np.float32(-0.5), 16, work, s, m, codes, out, to
        )
        for j in range(32):
            fifths = np.uint8(0)
            for g in range(8):
                fifths |= np.uint8((codes[32 * g + j] >> 4) << g)
            out[np.uint64(to + 16 + j)] = fifths
        _pack_four_bits(codes, out, to + 48)
