"""Q4_K Q5_K Q6_K: super-blocks of 256 weights with scales of their own for every 32 or 16.

Layout, bytes from the start of a super-block; `d` and `dmin` are IEEE halves:

| type | bytes | fields (llama.cpp: `block_q4_K`, `block_q5_K`, `block_q6_K`) |
|---|---|---|
| Q4_K | 144 | d 0, dmin 2, scales 4..15, qs 16..143 |
| Q5_K | 176 | d 0, dmin 2, scales 4..15, qh 16..47, qs 48..175 |
| Q6_K | 210 | ql 0..127, qh 128..191, scales 192..207 (signed bytes), d 208 |

Q4_K, Q5_K: sub-block s (32 weights, s = 0..7) has a six-bit scale and a six-bit minimum, and

    w = (d * scale_s) * q - dmin * min_s

Sub-blocks come in pairs over 32 bytes of `qs`: the even one in the low halves, the odd one in the high.
In Q5_K the fifth bit of weight l of sub-block s is bit s of `qh[l]`.

Q6_K: 16 weights share a signed scale, w = (d * scale) * (q - 32), q of six bits: four from `ql`, two from
`qh`. Each half of the super-block (128 weights, four runs of 32) has 64 bytes of `ql` and 32 of `qh`:
runs 0 and 1 are the low halves of its `ql`, runs 2 and 3 the high halves; run r has bits 2r, 2r+1 of `qh[l]`.

llama.cpp: `dequantize_row_q4_K`, `_q5_K`, `_q6_K`. All results are bit-equal with it.
"""

from __future__ import annotations

from nbllama._jit import kernel
from nbllama.quants._raw import f16, i8, number, put, u8


@kernel()
def scale_and_min(raw, at, s):  # type: ignore[no-untyped-def]
    """Six-bit scale and minimum of sub-block `s` from the 12 bytes at `at` (`get_scale_min_k4`).

    Bytes 0..3 hold scales 0..3 and bytes 4..7 minima 0..3 in their low six bits; the four low bits of
    scale and minimum 4..7 are the halves of bytes 8..11, the two high bits sit on top of bytes 0..7.
    """
    if s < 4:
        return u8(raw, at + s) & 63, u8(raw, at + s + 4) & 63
    low = u8(raw, at + s + 4)
    scale = (low & 15) | ((u8(raw, at + s - 4) >> 6) << 4)
    return scale, (low >> 4) | ((u8(raw, at + s) >> 6) << 4)


@kernel()
def decode_q4_k(raw, src, n_blocks, out, dst):  # type: ignore[no-untyped-def]
    """w = (d * scale) * q - dmin * min, q of four bits, one scale and minimum per 32 weights."""
    for b in range(n_blocks):
        at = src + 144 * b
        d, dmin = f16(raw, at), f16(raw, at + 2)
        for pair in range(4):
            qs, to = at + 16 + 32 * pair, dst + 256 * b + 64 * pair
            scale, low = scale_and_min(raw, at + 4, 2 * pair)
            d1, m1 = d * number(scale), dmin * number(low)
            scale, low = scale_and_min(raw, at + 4, 2 * pair + 1)
            d2, m2 = d * number(scale), dmin * number(low)
            for j in range(32):
                put(out, to + j, d1 * number(u8(raw, qs + j) & 15) - m1)
            for j in range(32):
                put(out, to + 32 + j, d2 * number(u8(raw, qs + j) >> 4) - m2)


@kernel()
def decode_q5_k(raw, src, n_blocks, out, dst):  # type: ignore[no-untyped-def]
    """w = (d * scale) * q - dmin * min, q of five bits, one scale and minimum per 32 weights."""
    for b in range(n_blocks):
        at = src + 176 * b
        qh = at + 16
        d, dmin = f16(raw, at), f16(raw, at + 2)
        for pair in range(4):
            qs, to = at + 48 + 32 * pair, dst + 256 * b + 64 * pair
            scale, low = scale_and_min(raw, at + 4, 2 * pair)
            d1, m1 = d * number(scale), dmin * number(low)
            scale, low = scale_and_min(raw, at + 4, 2 * pair + 1)
            d2, m2 = d * number(scale), dmin * number(low)
            for j in range(32):
                fifth = ((u8(raw, qh + j) >> (2 * pair)) & 1) << 4
                put(out, to + j, d1 * number((u8(raw, qs + j) & 15) | fifth) - m1)
            for j in range(32):
                fifth = ((u8(raw, qh + j) >> (2 * pair + 1)) & 1) << 4
                put(out, to + 32 + j, d2 * number((u8(raw, qs + j) >> 4) | fifth) - m2)


@kernel()
def decode_q6_k(raw, src, n_blocks, out, dst):  # type: ignore[no-untyped-def]
    """w = (d * scale) * (q - 32), q of six bits, one signed scale per 16 weights."""
    for b in range(n_blocks):
        at = src + 210 * b
        d = f16(raw, at + 208)
        for half in range(2):
            ql, qh, to = at + 64 * half, at + 128 + 32 * half, dst + 256 * b + 128 * half
            scales = at + 192 + 8 * half
            for k in range(2):
                d0, d1 = d * number(i8(raw, scales + k)), d * number(i8(raw, scales + k + 2))
                d2, d3 = d * number(i8(raw, scales + k + 4)), d * number(i8(raw, scales + k + 6))
                for j in range(16 * k, 16 * k + 16):
                    q = (u8(raw, ql + j) & 15) | ((u8(raw, qh + j) & 3) << 4)
                    put(out, to + j, d0 * number(q - 32))
                for j in range(16 * k, 16 * k + 16):
                    q = (u8(raw, ql + 32 + j) & 15) | (((u8(raw, qh + j) >> 2) & 3) << 4)
                    put(out, to + 32 + j, d1 * number(q - 32))
                for j in range(16 * k, 16 * k + 16):
                    q = (u8(raw, ql + j) >> 4) | (((u8(raw, qh + j) >> 4) & 3) << 4)
                    put(out, to + 64 + j, d2 * number(q - 32))
                for j in range(16 * k, 16 * k + 16):
                    q = (u8(raw, ql + 32 + j) >> 4) | ((u8(raw, qh + j) >> 6) << 4)
                    put(out, to + 96 + j, d3 * number(q - 32))
