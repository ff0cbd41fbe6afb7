"""The IQ1, IQ2 and IQ3 types, whose codes are indices of rows in a code book.

A super-block contains 256 weights in 8 groups of 32. The table lists the byte offsets of its fields
(llama.cpp: `block_iq1_s` ... `block_iq3_s`). `d` is an IEEE half; u16 and u32 are little-endian:

| type | bytes | fields |
|---|---|---|
| IQ1_S | 50 | d 0, qs 2..33, qh 34..49 (u16 per group) |
| IQ1_M | 56 | qs 0..31, qh 32..47 (two bytes per group), scales 48..55 (four u16) |
| IQ2_XXS | 66 | d 0, qs 2..65 (per group four row bytes, then u32: 4 x 7 sign bits, scale) |
| IQ2_XS | 74 | d 0, qs 2..65 (u16 per 8 weights: row 9 bits, signs 7), scales 66..73 |
| IQ2_S | 82 | d 0, qs 2..33, signs 34..65, qh 66..73, scales 74..81 |
| IQ3_XXS | 98 | d 0, qs 2..65 (row byte per 4 weights), 66..97 (u32 per group: signs, scale) |
| IQ3_S | 110 | d 0, qs 2..65, qh 66..73, signs 74..105, scales 106..109 |

The formulas of the weights are:

| types | weight |
|---|---|
| IQ2 types | (d * (0.5 + scale) * 0.25) * row * sign |
| IQ3_XXS | (d * (0.5 + scale) * 0.5) * row * sign |
| IQ3_S | (d * (1 + 2 scale)) * row * sign |
| IQ1 types | (d * (2 scale + 1)) * (row +- 0.125) |

Scales have four bits, or three bits in the IQ1 types. Seven sign bits encode eight signs, because
the number of minus signs is always even.

llama.cpp: `dequantize_row_iq1_s`, `_iq1_m`, `_iq2_xxs`, `_iq2_xs`, `_iq2_s`, `_iq3_xxs`, `_iq3_s`.
The results are bit-identical to both llama.cpp and gguf-py.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import f16, half_of_bits, i8, number, put, u8, u16, u32

_IQ1, _IQ2_XXS, _IQ2_XS, _IQ2_S = _grids.IQ1, _grids.IQ2_XXS, _grids.IQ2_XS, _grids.IQ2_S
_IQ3_XXS, _IQ3_S, _SIGNS = _grids.IQ3_XXS, _grids.IQ3_S, _grids.SIGNS
_HALF, _QUARTER, _DELTA = np.float32(0.5), np.float32(0.25), np.float32(0.125)


@kernel()
def put_signed(scale, book, at, n, signs, out, to):
    """Set out[to + j] = scale * book[at + j] for j = 0 .. n-1.

    Element j is negated if bit j of `signs` is set.
    """
    for j in range(n):
        weight = scale * number(u8(book, at + j))
        put(out, to + j, -weight if (signs >> j) & 1 else weight)


@kernel()
def put_shifted(scale, at, shift, out, to):
    """Set out[to + j] = scale * (row[j] + shift) for j = 0 .. 7.

    `row` contains the 8 values at byte `at` of the IQ1 code book.
    """
    for j in range(8):
        put(out, to + j, scale * (number(i8(_IQ1, at + j)) + shift))


@kernel()
def decode_iq2_xxs(raw, src, n_blocks, out, dst):
    """Decode IQ2_XXS, which has a code book of 256 rows.

    Each group has a u32 with four sets of seven sign bits, and the scale in its top bits.
    """
    for b in range(n_blocks):
        at, to = src + 66 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            qs = at + 2 + 8 * g
            packed = u32(raw, qs + 4)
            scale = d * (_HALF + number(packed >> 28)) * _QUARTER
            for k in range(4):
                signs = u8(_SIGNS, (packed >> (7 * k)) & 127)
                put_signed(scale, _IQ2_XXS, 8 * u8(raw, qs + k), 8, signs, out, to + 32 * g + 8 * k)


@kernel()
def decode_iq2_xs(raw, src, n_blocks, out, dst):
    """Decode IQ2_XS, which has a code book of 512 rows.

    Each byte of `scales` contains two scales, each for 16 weights.
    """
    for b in range(n_blocks):
        at, to = src + 74 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(16):
            four = (u8(raw, at + 66 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = d * (_HALF + number(four)) * _QUARTER
            for k in range(2):
                q = u16(raw, at + 2 + 4 * g + 2 * k)
                signs = u8(_SIGNS, q >> 9)
                put_signed(scale, _IQ2_XS, 8 * (q & 511), 8, signs, out, to + 16 * g + 8 * k)


@kernel()
def decode_iq2_s(raw, src, n_blocks, out, dst):
    """Decode IQ2_S, which has a code book of 1024 rows.

    The two high bits of each row index are in `qh` (one byte per group of 32). All eight signs of a
    row are stored.
    """
    for b in range(n_blocks):
        at, to = src + 82 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(16):
            four = (u8(raw, at + 74 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = d * (_HALF + number(four)) * _QUARTER
            high = u8(raw, at + 66 + (g >> 1)) >> (4 * (g & 1))
            for k in range(2):
                row = u8(raw, at + 2 + 2 * g + k) | (((high >> (2 * k)) & 3) << 8)
                signs = u8(raw, at + 34 + 2 * g + k)
                put_signed(scale, _IQ2_S, 8 * row, 8, signs, out, to + 16 * g + 8 * k)


@kernel()
def decode_iq3_xxs(raw, src, n_blocks, out, dst):
    """Decode IQ3_XXS, which has a code book of 256 rows of 4 values.

    Each group has a u32 with four sets of seven sign bits, and the scale in its top bits.
    """
    for b in range(n_blocks):
        at, to = src + 98 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            packed = u32(raw, at + 66 + 4 * g)
            scale = d * (_HALF + number(packed >> 28)) * _HALF
            for k in range(8):
                signs = u8(_SIGNS, (packed >> (7 * (k >> 1))) & 127) >> (4 * (k & 1))
                row = u8(raw, at + 2 + 8 * g + k)
                put_signed(scale, _IQ3_XXS, 4 * row, 4, signs, out, to + 32 * g + 4 * k)


@kernel()
def decode_iq3_s(raw, src, n_blocks, out, dst):
    """Decode IQ3_S, which has a code book of 512 rows of 4 values.

    The ninth bit of each row index is in `qh` (one byte per group of 32). All signs are stored.
    """
    for b in range(n_blocks):
        at, to = src + 110 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            four = (u8(raw, at + 106 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = d * number(1 + 2 * four)
            high = u8(raw, at + 66 + g)
            for k in range(8):
                row = u8(raw, at + 2 + 8 * g + k) | (((high >> k) & 1) << 8)
                signs = u8(raw, at + 74 + 4 * g + (k >> 1)) >> (4 * (k & 1))
                put_signed(scale, _IQ3_S, 4 * row, 4, signs, out, to + 32 * g + 4 * k)


@kernel()
def decode_iq1_s(raw, src, n_blocks, out, dst):
    """Decode IQ1_S, which has a code book of 2048 rows.

    Each group has a u16 with the three high bits of four row indices, three scale bits and the sign
    of the shift.
    """
    for b in range(n_blocks):
        at, to = src + 50 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            high = u16(raw, at + 34 + 2 * g)
            scale = d * number(2 * ((high >> 12) & 7) + 1)
            shift = -_DELTA if high >> 15 else _DELTA
            for k in range(4):
                row = u8(raw, at + 2 + 4 * g + k) | (((high >> (3 * k)) & 7) << 8)
                put_shifted(scale, 8 * row, shift, out, to + 32 * g + 8 * k)


@kernel()
def iq1_m_scale(raw, at):
    """Return d of the IQ1_M block at byte `at`, assembled from the top nibbles in `scales`."""
    bits = 0
    for k in range(4):
        bits |= (u16(raw, at + 48 + 2 * k) >> 12) << (4 * k)
    return half_of_bits(bits)


@kernel()
def decode_iq1_m(raw, src, n_blocks, out, dst):
    """Decode IQ1_M, which has a code book of 2048 rows.

    For every 8 weights, half a byte of `qh` contains the three high bits of the row index and the
    sign of the shift. The low twelve bits of each u16 in `scales` contain four three-bit scales.
    """
    for b in range(n_blocks):
        at, to = src + 56 * b, dst + 256 * b
        d = iq1_m_scale(raw, at)
        for g in range(16):
            three = (u16(raw, at + 48 + 2 * (g >> 2)) >> (3 * (g & 3))) & 7
            scale = d * number(2 * three + 1)
            for k in range(2):
                high = (u8(raw, at + 32 + g) >> (4 * k)) & 15
                shift = -_DELTA if high >> 3 else _DELTA
                row = u8(raw, at + 2 * g + k) | ((high & 7) << 8)
                put_shifted(scale, 8 * row, shift, out, to + 16 * g + 8 * k)
