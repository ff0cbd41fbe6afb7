"""Q1_0: 128 one-bit weights with one scale d. A weight is d if its bit is set, else -d.

A block has 18 bytes (llama.cpp: `block_q1_0`): the half d is at byte 0, and the bits are in bytes
2..17. Weight i is bit i % 8 (lowest first) of byte 2 + i // 8.

llama.cpp: `dequantize_row_q1_0`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, number, put, u8


@kernel()
def decode_q1_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (2 bit - 1)."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 128 * b
        d = f16(raw, at)
        for j in range(16):
            bits = u8(raw, at + 2 + j)
            for k in range(8):
                put(out, to + 8 * j + k, d * number(2 * ((bits >> k) & 1) - 1))
