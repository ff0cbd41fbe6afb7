"""MXFP4: blocks of 32 four-bit floats whose scale is a power of two.

A block has 17 bytes (llama.cpp: `block_mxfp4`): the exponent e of the scale is byte 0, and the
codes are bytes 1..16. Byte j of the codes contains weight j in its low half and weight j + 16 in
its high half. A code has a sign bit, two exponent bits and one mantissa bit.

    w = 2^(e - 128) * value[q]

The table `value` contains the values of the four-bit floats times 2 (0, 1, 2, 3, 4, 6, 8, 12 and
their negatives), which is why the formula contains 128 although the bias is 127. As in llama.cpp,
code 8 is 0, not -0. Also as in llama.cpp, e = 255 is decoded as a number, although it is NaN in the
OCP specification; `check_finite` reports it.

llama.cpp: `dequantize_row_mxfp4`, `ggml_e8m0_to_fp32_half`. The results are bit-identical.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import i8, number, put, single_of_bits, u8

_VALUES = _grids.MXFP4


@kernel()
def power_of_two(e):
    """Return 2^(e - 128) for e = 0..255 as float32; the two smallest values are subnormal."""
    return single_of_bits((e - 1) << 23 if e >= 2 else 0x00200000 << e)


@kernel()
def decode_mxfp4(raw, src, n_blocks, out, dst):
    """Decode w = 2^(e - 128) * value[q]."""
    for b in range(n_blocks):
        at, to = src + 17 * b, dst + 32 * b
        d = power_of_two(u8(raw, at))
        for j in range(16):
            q = u8(raw, at + 1 + j)
            put(out, to + j, d * number(i8(_VALUES, q & 15)))
            put(out, to + 16 + j, d * number(i8(_VALUES, q >> 4)))
