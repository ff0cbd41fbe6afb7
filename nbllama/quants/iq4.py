"""IQ4_NL and IQ4_XS, whose four-bit codes are indices into a table of 16 values.

| type | weights | bytes | fields (llama.cpp: `block_iq4_nl`, `block_iq4_xs`) |
|---|---|---|---|
| IQ4_NL | 32 | 18 | d 0, qs 2..17 |
| IQ4_XS | 256 | 136 | d 0, scales_h 2..3 (u16), scales_l 4..7, qs 8..135 |

In IQ4_NL, w = d * value[q]. Byte j of `qs` contains weight j in its low half and weight j + 16 in
its high half. In IQ4_XS, w = (d * (scale - 32)) * value[q], and the eight groups of 32 are packed
in the same way. The low four bits of scale g are half a byte of `scales_l`, and the high two bits
are bits 2g and 2g + 1 of `scales_h`.

llama.cpp: `dequantize_row_iq4_nl`, `dequantize_row_iq4_xs`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import f16, i8, number, put, u8, u16

_VALUES = _grids.IQ4


@kernel()
def decode_iq4_nl(raw, src, n_blocks, out, dst):
    """Decode w = d * value[q]."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 32 * b
        d = f16(raw, at)
        for j in range(16):
            q = u8(raw, at + 2 + j)
            put(out, to + j, d * number(i8(_VALUES, q & 15)))
            put(out, to + 16 + j, d * number(i8(_VALUES, q >> 4)))


@kernel()
def decode_iq4_xs(raw, src, n_blocks, out, dst):
    """Decode w = (d * (scale - 32)) * value[q]."""
    for b in range(n_blocks):
        at, to = src + 136 * b, dst + 256 * b
        d, high = f16(raw, at), u16(raw, at + 2)
        for g in range(8):
            low = (u8(raw, at + 4 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = d * number((low | (((high >> (2 * g)) & 3) << 4)) - 32)
            for j in range(16):
                q = u8(raw, at + 8 + 16 * g + j)
                put(out, to + 32 * g + j, scale * number(i8(_VALUES, q & 15)))
                put(out, to + 32 * g + 16 + j, scale * number(i8(_VALUES, q >> 4)))
