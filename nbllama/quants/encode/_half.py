"""Convert float32 to IEEE half inside kernels, and store the bytes."""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import half_of_bits
from nbllama.quants.encode._vec import single_bits

_INFINITE = 0x7C00


@kernel(own="quants/encode")
def half_bits(value):
    """Round a float32 to the nearest half (ties to even); return its 16 bits as an int64.

    The float32 must not be NaN. Numbers of 65520 or more become infinity, and numbers below 2^-14
    become subnormal halves, which have fewer significant bits.
    """
    bits = single_bits(np.float32(value))
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size < 0x38800000:
        return sign | np.int64(np.rint(abs(np.float32(value)) * np.float32(2.0**24)))
    rounded = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13
    return sign | min(rounded, _INFINITE)


@kernel(own="quants/encode")
def put_half(out, at, value):
    """Store a float32 as a half at byte `at`; return the rounded value as float32."""
    bits = half_bits(value)
    out[at] = np.uint8(bits & 255)
    out[at + 1] = np.uint8(bits >> 8)
    return half_of_bits(bits)
