"""Weight types of GGUF files and their decoders: one module per family, and one kernel per type.

Every kernel has the signature `decode_x(raw, src, n_blocks, out, dst)`. It decodes `n_blocks`
blocks of `raw` (uint8, read-only), starting at byte `src`, into `out` (float32), starting at
element `dst`. The arithmetic is strict, so results are bit-identical to llama.cpp's
`dequantize_row_x`.
"""

from nbllama.quants.base import DECODERS, QUANTS, nbytes, quant_type
from nbllama.quants.decode import as_readonly, decode, decode_rows
from nbllama.quants.dispatch import decode_blocks
from nbllama.quants.finite import check_finite

__all__ = [
    "DECODERS",
    "QUANTS",
    "as_readonly",
    "check_finite",
    "decode",
    "decode_blocks",
    "decode_rows",
    "nbytes",
    "quant_type",
]
