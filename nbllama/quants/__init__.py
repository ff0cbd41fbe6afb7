"""Weight types of GGUF files and their decoders: one file per family, one kernel per type.

Every kernel has the signature `decode_x(raw, src, n_blocks, out, dst)`: decode `n_blocks` blocks
from byte `src` of `raw` (uint8, read-only) into `out` (float32) from element `dst` on. Arithmetic
is strict: the results have the same bits as those of llama.cpp's `dequantize_row_x`.
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
