"""Quantisers: encoders of float32 rows as weight types of GGUF files (decoders: `nbllama.quants`).

One file per family, one encoder per type, all with the signature
`encode_x(x, src, n_blocks, out, dst)`: encode `n_blocks` blocks from element `src` of `x` (float32)
to `out` (uint8) from byte `dst` on. The formulas are those of llama.cpp's `ggml-quants.c`.
"""

from nbllama.quants.encode.encode import QUANTISED, quantise

__all__ = ["QUANTISED", "quantise"]
