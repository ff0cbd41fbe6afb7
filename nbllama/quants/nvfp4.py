"""NVFP4: blocks of 64 four-bit floats with four eight-bit scales.

A block has 36 bytes (llama.cpp: `block_nvfp4`): four scales in bytes 0..3 and codes in bytes 4..35.
A code has a sign bit, two exponent bits and one mantissa bit. For each group s of 16 weights,
there are eight bytes of codes. Byte j of the group contains weight 16 s + j in its low half and
weight 16 s + 8 + j in its high half.

    w = scale(c) / 2 * value[q]
    scale(c) = (1 + m / 8) 2^(e - 7)  for e > 0,  m / 8 * 2^-6  for e = 0

The mantissa m is in the lowest three bits of c, and the exponent e is in the next four; the highest
bit is ignored. The table `value` contains the values of the four-bit floats times 2, as in
`quants.mxfp4`, hence the division by 2. As in llama.cpp, c = 127 is decoded as 0, although it means
NaN in the format of the scale. Files that also contain one scale per tensor (`NAME.scale`) are
refused.

llama.cpp: `dequantize_row_nvfp4`, `ggml_ue4m3_to_fp32`. The results are bit-identical.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import i8, number, put, single_of_bits, u8

_VALUES = _grids.MXFP4
_LEAST = np.float32(2.0**-10)


@kernel()
def half_scale(c):
    """Return scale(c) / 2 as float32."""
    e, m = (c >> 3) & 15, c & 7
    if c == 127:
        return np.float32(0.0)
    return single_of_bits(((e + 119) << 23) | (m << 20)) if e > 0 else number(m) * _LEAST


@kernel()
def decode_nvfp4(raw, src, n_blocks, out, dst):
    """Decode w = scale(c) / 2 * value[q]."""
    for b in range(n_blocks):
        at, to = src + 36 * b, dst + 64 * b
        for s in range(4):
            d = half_scale(u8(raw, at + s))
            for j in range(8):
                q = u8(raw, at + 4 + 8 * s + j)
                put(out, to + 16 * s + j, d * number(i8(_VALUES, q & 15)))
                put(out, to + 16 * s + 8 + j, d * number(i8(_VALUES, q >> 4)))
