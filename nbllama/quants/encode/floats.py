"""Encoders of F16 and BF16, which round to nearest with ties to even. F32 needs no encoder.

llama.cpp: `ggml_fp32_to_fp16_row`, `ggml_fp32_to_bf16_row`. The bytes are identical except for NaN.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants.encode._half import half_bits
from nbllama.quants.encode._vec import single_bits


@kernel(own="quants/encode")
def encode_f16(x, src, n_blocks, out, dst):
    """Round float32 to IEEE half; numbers of 65520 or more become infinity."""
    for i in range(n_blocks):
        bits = half_bits(x[np.uint64(src + i)])
        out[np.uint64(dst + 2 * i)] = np.uint8(bits & 255)
        out[np.uint64(dst + 2 * i + 1)] = np.uint8(bits >> 8)


@kernel(own="quants/encode")
def encode_bf16(x, src, n_blocks, out, dst):
    """Round float32 to bfloat16, which is the upper half of a float32."""
    for i in range(n_blocks):
        bits = single_bits(x[np.uint64(src + i)])
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        out[np.uint64(dst + 2 * i)] = np.uint8(bits & 255)
        out[np.uint64(dst + 2 * i + 1)] = np.uint8(bits >> 8)
