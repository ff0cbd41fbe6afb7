"""TQ1_0 and TQ2_0: blocks of 256 weights, each of which is -d, 0 or d.

A weight is d * (q - 1) with q in 0..2.

| type | bytes | fields (llama.cpp: `block_tq1_0`, `block_tq2_0`) |
|---|---|---|
| TQ1_0 | 54 | qs 0..47, qh 48..51, d 52 |
| TQ2_0 | 66 | qs 0..63, d 64 |

In TQ2_0, a byte contains four two-bit codes. Code n of `qs[32h + j]` belongs to weight
128h + 32n + j.

In TQ1_0, a byte contains five base-3 digits, which form a number below 3^5 = 243. The byte is this
number divided by 243, in units of 1/256, rounded up. To extract digit n, multiply by 3^n and keep
the fraction (the byte wraps around), then multiply by 3 and take the integer part. There are three
runs of bytes. Bytes 0..31 encode weights 0..159, and bytes 32..47 encode weights 160..239, with
five digits per byte. The four bytes of `qh` encode the last 16 weights, with four digits per byte.
In a run of m bytes, digit n of byte j belongs to weight n * m + j of the run.

llama.cpp: `dequantize_row_tq1_0`, `dequantize_row_tq2_0`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, number, put, u8


@kernel()
def _digits(raw, at, length, n_digits, d, out, to):
    """Decode the weights in `length` bytes, each of which contains `n_digits` base-3 digits."""
    power = 1
    for n in range(n_digits):
        for j in range(length):
            fraction = (u8(raw, at + j) * power) & 255
            put(out, to + length * n + j, d * number(((fraction * 3) >> 8) - 1))
        power *= 3


@kernel()
def decode_tq1_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (digit - 1); a byte contains five digits (four in `qh`)."""
    for b in range(n_blocks):
        at, to = src + 54 * b, dst + 256 * b
        d = f16(raw, at + 52)
        _digits(raw, at, 32, 5, d, out, to)
        _digits(raw, at + 32, 16, 5, d, out, to + 160)
        _digits(raw, at + 48, 4, 4, d, out, to + 240)


@kernel()
def decode_tq2_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 1); a byte contains four codes."""
    for b in range(n_blocks):
        at, to = src + 66 * b, dst + 256 * b
        d = f16(raw, at + 64)
        for g in range(8):
            half, field = g >> 2, g & 3
            for j in range(32):
                q = (u8(raw, at + 32 * half + j) >> (2 * field)) & 3
                put(out, to + 32 * g + j, d * number(q - 1))
