"""Vectorised decoders for the IQ1, IQ2 and IQ3 types.

See `nbllama.quants.iquants` for the formulas.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import f16, number, u8, u16, u32
from nbllama.quants._vec import load8, negative_where, signed, store, two_rows_of_4, unsigned
from nbllama.quants.iquants import iq1_m_scale

_IQ1, _IQ2_XXS, _IQ2_XS, _IQ2_S = _grids.IQ1, _grids.IQ2_XXS, _grids.IQ2_XS, _grids.IQ2_S
_IQ3_XXS, _IQ3_S, _SIGNS = _grids.IQ3_XXS, _grids.IQ3_S, _grids.SIGNS
_HALF, _QUARTER, _DELTA = np.float32(0.5), np.float32(0.25), np.float32(0.125)


@kernel()
def decode_iq2_xxs(raw, src, n_blocks, out, dst):
    """Decode IQ2_XXS, which has a code book of 256 rows.

    Each group has a u32 that contains seven sign bits for each of four rows, and the scale in its
    top four bits.
    """
    for b in range(n_blocks):
        at, to = src + 66 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            qs = at + 2 + 8 * g
            packed = u32(raw, qs + 4)
            scale = d * (_HALF + number(packed >> 28)) * _QUARTER
            for k in range(4):
                row = scale * unsigned(load8(_IQ2_XXS, 8 * u8(raw, qs + k)))
                signs = u8(_SIGNS, (packed >> (7 * k)) & 127)
                store(out, to + 32 * g + 8 * k, negative_where(row, signs))


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
                row = scale * unsigned(load8(_IQ2_XS, 8 * (q & 511)))
                store(out, to + 16 * g + 8 * k, negative_where(row, u8(_SIGNS, q >> 9)))


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
                at_row = u8(raw, at + 2 + 2 * g + k) | (((high >> (2 * k)) & 3) << 8)
                row = scale * unsigned(load8(_IQ2_S, 8 * at_row))
                signs = u8(raw, at + 34 + 2 * g + k)
                store(out, to + 16 * g + 8 * k, negative_where(row, signs))


@kernel()
def decode_iq3_xxs(raw, src, n_blocks, out, dst):
    """Decode IQ3_XXS, which has a code book of 256 rows of 4 values.

    Each group has a u32 that contains seven sign bits for each of four pairs of rows, and the scale
    in its top four bits.
    """
    for b in range(n_blocks):
        at, to = src + 98 * b, dst + 256 * b
        d = f16(raw, at)
        for g in range(8):
            packed = u32(raw, at + 66 + 4 * g)
            scale = d * (_HALF + number(packed >> 28)) * _HALF
            for k in range(4):
                qs = at + 2 + 8 * g + 2 * k
                rows = two_rows_of_4(_IQ3_XXS, 4 * u8(raw, qs), 4 * u8(raw, qs + 1))
                signs = u8(_SIGNS, (packed >> (7 * k)) & 127)
                store(out, to + 32 * g + 8 * k, negative_where(scale * unsigned(rows), signs))


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
            for k in range(4):
                qs = at + 2 + 8 * g + 2 * k
                first = u8(raw, qs) | (((high >> (2 * k)) & 1) << 8)
                second = u8(raw, qs + 1) | (((high >> (2 * k + 1)) & 1) << 8)
                rows = scale * unsigned(two_rows_of_4(_IQ3_S, 4 * first, 4 * second))
                signs = u8(raw, at + 74 + 4 * g + k)
                store(out, to + 32 * g + 8 * k, negative_where(rows, signs))


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
                at_row = u8(raw, at + 2 + 4 * g + k) | (((high >> (3 * k)) & 7) << 8)
                row = signed(load8(_IQ1, 8 * at_row))
                store(out, to + 32 * g + 8 * k, scale * (row + shift))


@kernel()
def decode_iq1_m(raw, src, n_blocks, out, dst):
    """Decode IQ1_M, which has a code book of 2048 rows.

    For every 8 weights, half a byte of `qh` contains the three high bits of the row index and the
    sign of the shift.
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
                row = signed(load8(_IQ1, 8 * (u8(raw, at + 2 * g + k) | ((high & 7) << 8))))
                store(out, to + 16 * g + 8 * k, scale * (row + shift))
