"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights with a scale d and sometimes an offset m.

The table lists the byte offsets of the fields in a block (llama.cpp: `block_q4_0` ...). `d` and `m`
are IEEE halves:

| type | bytes | d | m | qh | qs | weight |
|---|---|---|---|---|---|---|
| Q4_0 | 18 | 0 | | | 2..17 | d * (q - 8) |
| Q4_1 | 20 | 0 | 2 | | 4..19 | d * q + m |
| Q5_0 | 22 | 0 | | 2..5 | 6..21 | d * (q - 16) |
| Q5_1 | 24 | 0 | 2 | 4..7 | 8..23 | d * q + m |
| Q8_0 | 34 | 0 | | | 2..33 | d * q, q signed |

For four-bit codes, byte j of `qs` contains weight j in its low half and weight j + 16 in its high
half. For five-bit codes, `qs` contains the low four bits in the same order, and the fifth bit of
weight j is bit j of the 32-bit number `qh`.

llama.cpp: `dequantize_row_q4_0`, `_q4_1`, `_q5_0`, `_q5_1`, `_q8_0`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, i8, number, put, u8, u32


@kernel()
def decode_q4_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 8), where q has four bits."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 32 * b
        d = f16(raw, at)
        for j in range(16):
            put(out, to + j, d * number((u8(raw, at + 2 + j) & 15) - 8))
        for j in range(16):
            put(out, to + 16 + j, d * number((u8(raw, at + 2 + j) >> 4) - 8))


@kernel()
def decode_q4_1(raw, src, n_blocks, out, dst):
    """Decode w = d * q + m, where q has four bits."""
    for b in range(n_blocks):
        at, to = src + 20 * b, dst + 32 * b
        d, m = f16(raw, at), f16(raw, at + 2)
        for j in range(16):
            put(out, to + j, d * number(u8(raw, at + 4 + j) & 15) + m)
        for j in range(16):
            put(out, to + 16 + j, d * number(u8(raw, at + 4 + j) >> 4) + m)


@kernel()
def decode_q5_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 16), where q has five bits."""
    for b in range(n_blocks):
        at, to = src + 22 * b, dst + 32 * b
        d, high = f16(raw, at), u32(raw, at + 2)
        for j in range(16):
            q = (u8(raw, at + 6 + j) & 15) | (((high >> j) & 1) << 4)
            put(out, to + j, d * number(q - 16))
        for j in range(16):
            q = (u8(raw, at + 6 + j) >> 4) | (((high >> (j + 16)) & 1) << 4)
            put(out, to + 16 + j, d * number(q - 16))


@kernel()
def decode_q5_1(raw, src, n_blocks, out, dst):
    """Decode w = d * q + m, where q has five bits."""
    for b in range(n_blocks):
        at, to = src + 24 * b, dst + 32 * b
        d, m, high = f16(raw, at), f16(raw, at + 2), u32(raw, at + 4)
        for j in range(16):
            q = (u8(raw, at + 8 + j) & 15) | (((high >> j) & 1) << 4)
            put(out, to + j, d * number(q) + m)
        for j in range(16):
            q = (u8(raw, at + 8 + j) >> 4) | (((high >> (j + 16)) & 1) << 4)
            put(out, to + 16 + j, d * number(q) + m)


@kernel()
def decode_q8_0(raw, src, n_blocks, out, dst):
    """Decode w = d * q, where q is a signed byte."""
    for b in range(n_blocks):
        at, to = src + 34 * b, dst + 32 * b
        d = f16(raw, at)
        for j in range(32):
            put(out, to + j, d * number(i8(raw, at + 2 + j)))
