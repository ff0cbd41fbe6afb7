"""The K-quants Q2_K to Q6_K: super-blocks of 256 weights with one scale per group of 16 or 32.

The table lists the byte offsets of the fields in a super-block. `d` and `dmin` are IEEE halves:

| type | bytes | fields (llama.cpp: `block_q2_K` ... `block_q6_K`) | weight |
|---|---|---|---|
| Q2_K | 84 | scales 0..15, qs 16..79, d 80, dmin 82 | (d * scale) * q - dmin * min |
| Q3_K | 110 | hmask 0..31, qs 32..95, scales 96..107, d 108 | (d * (scale - 32)) * (q - 4) |
| Q4_K | 144 | d 0, dmin 2, scales 4..15, qs 16..143 | (d * scale) * q - dmin * min |
| Q5_K | 176 | d 0, dmin 2, scales 4..15, qh 16..47, qs 48..175 | (d * scale) * q - dmin * min |
| Q6_K | 210 | ql 0..127, qh 128..191, scales 192..207, d 208 | (d * scale) * (q - 32) |

The weights form groups that share a scale: 16 groups of 16 (Q2_K, Q3_K, Q6_K) or 8 groups of 32
(Q4_K, Q5_K). One byte contains bits of several groups. In Q2_K and Q3_K, the two-bit fields of the
bytes `qs[0:32]` contain weights 0..127 (field r contains weights 32r .. 32r+31), and those of
`qs[32:64]` contain the other 128 weights.

llama.cpp: `dequantize_row_q2_K`, `_q3_K`, `_q4_K`, `_q5_K`, `_q6_K`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, i8, number, put, u8


@kernel()
def decode_q2_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has two bits.

    Each byte of `scales` is scale | min << 4.
    """
    for b in range(n_blocks):
        at, to = src + 84 * b, dst + 256 * b
        d, dmin = f16(raw, at + 80), f16(raw, at + 82)
        for g in range(16):
            half, field, side = g >> 3, (g >> 1) & 3, g & 1
            qs = at + 16 + 32 * half + 16 * side
            both = u8(raw, at + g)
            scale, low = d * number(both & 15), dmin * number(both >> 4)
            for j in range(16):
                q = (u8(raw, qs + j) >> (2 * field)) & 3
                put(out, to + 16 * g + j, scale * number(q) - low)


@kernel()
def q3_scale(raw, at, g):
    """Return the six-bit scale of group `g` from the 12 bytes at `at`.

    The four low bits are in the low halves of bytes 0..7 for groups 0..7, and in their high halves
    for groups 8..15. The two high bits are field g >> 2 of byte 8 + (g & 3).
    """
    low = (u8(raw, at + (g & 7)) >> (4 * (g >> 3))) & 15
    return low | (((u8(raw, at + 8 + (g & 3)) >> (2 * (g >> 2))) & 3) << 4)


@kernel()
def decode_q3_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * (scale - 32)) * (q - 4), where the third bit of q is in `hmask`."""
    for b in range(n_blocks):
        at, to = src + 110 * b, dst + 256 * b
        d = f16(raw, at + 108)
        for g in range(16):
            half, field, side = g >> 3, (g >> 1) & 3, g & 1
            qs, hmask = at + 32 + 32 * half + 16 * side, at + 16 * side
            scale = d * number(q3_scale(raw, at + 96, g) - 32)
            for j in range(16):
                third = ((u8(raw, hmask + j) >> (g >> 1)) & 1) << 2
                q = ((u8(raw, qs + j) >> (2 * field)) & 3) | third
                put(out, to + 16 * g + j, scale * number(q - 4))


@kernel()
def scale_and_min(raw, at, g):
    """Return the six-bit scale and minimum of group `g` from the 12 bytes at `at`.

    The low six bits of bytes 0..3 are scales 0..3; those of bytes 4..7 are minima 0..3. For scales
    and minima 4..7, the four low bits are the halves of bytes 8..11, and the two high bits are the
    top bits of bytes 0..7. llama.cpp: `get_scale_min_k4`.
    """
    if g < 4:
        return u8(raw, at + g) & 63, u8(raw, at + g + 4) & 63
    both = u8(raw, at + g + 4)
    scale = (both & 15) | ((u8(raw, at + g - 4) >> 6) << 4)
    return scale, (both >> 4) | ((u8(raw, at + g) >> 6) << 4)


@kernel()
def decode_q4_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has four bits.

    Groups 2p and 2p + 1 are the low and high halves of the same 32 bytes.
    """
    for b in range(n_blocks):
        at, to = src + 144 * b, dst + 256 * b
        d, dmin = f16(raw, at), f16(raw, at + 2)
        for g in range(8):
            qs = at + 16 + 32 * (g >> 1)
            six, least = scale_and_min(raw, at + 4, g)
            scale, low = d * number(six), dmin * number(least)
            for j in range(32):
                q = (u8(raw, qs + j) >> (4 * (g & 1))) & 15
                put(out, to + 32 * g + j, scale * number(q) - low)


@kernel()
def decode_q5_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has five bits.

    The low four bits are packed as in Q4_K. For group g, the fifth bit is bit g of a byte of `qh`.
    """
    for b in range(n_blocks):
        at, to = src + 176 * b, dst + 256 * b
        d, dmin = f16(raw, at), f16(raw, at + 2)
        for g in range(8):
            qs, qh = at + 48 + 32 * (g >> 1), at + 16
            six, least = scale_and_min(raw, at + 4, g)
            scale, low = d * number(six), dmin * number(least)
            for j in range(32):
                fifth = ((u8(raw, qh + j) >> g) & 1) << 4
                q = ((u8(raw, qs + j) >> (4 * (g & 1))) & 15) | fifth
                put(out, to + 32 * g + j, scale * number(q) - low)


@kernel()
def decode_q6_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * (q - 32), where q has four bits in `ql` and two in `qh`.

    Scales are signed bytes. For every 128 weights, 64 bytes of `ql` contain weights 0..63 in their
    low halves and weights 64..127 in their high halves, and each of 32 bytes of `qh` contains four
    two-bit fields.
    """
    for b in range(n_blocks):
        at, to = src + 210 * b, dst + 256 * b
        d = f16(raw, at + 208)
        for g in range(16):
            half, field, side = g >> 3, (g >> 1) & 3, g & 1
            ql = at + 64 * half + 32 * (field & 1) + 16 * side
            qh = at + 128 + 32 * half + 16 * side
            scale = d * number(i8(raw, at + 192 + g))
            for j in range(16):
                high = ((u8(raw, qh + j) >> (2 * field)) & 3) << 4
                q = ((u8(raw, ql + j) >> (4 * (field >> 1))) & 15) | high
                put(out, to + 16 * g + j, scale * number(q - 32))
