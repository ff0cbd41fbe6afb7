"""The plain number formats F32, F16 and BF16, in which each block is one number.

| type | bytes | value |
|---|---|---|
| F32 | 4 | IEEE single |
| F16 | 2 | IEEE half: sign 1, exponent 5, mantissa 10 |
| BF16 | 2 | the upper half of an IEEE single: sign 1, exponent 8, mantissa 7 |

llama.cpp: `ggml_fp16_to_fp32_row`, `ggml_bf16_to_fp32_row`. Float32 can represent every half and
every bfloat16 exactly, so nothing is rounded.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import bf16, f16, f32, put


@kernel()
def decode_f32(raw, src, n_blocks, out, dst):
    """Copy float32 numbers; the bytes in `raw` need not be aligned."""
    for i in range(n_blocks):
        put(out, dst + i, f32(raw, src + 4 * i))


@kernel()
def decode_f16(raw, src, n_blocks, out, dst):
    """Convert half to float, and preserve infinities and NaN."""
    for i in range(n_blocks):
        put(out, dst + i, f16(raw, src + 2 * i))


@kernel()
def decode_bf16(raw, src, n_blocks, out, dst):
    """Convert bfloat16 to float, and preserve infinities and NaN."""
    for i in range(n_blocks):
        put(out, dst + i, bf16(raw, src + 2 * i))
