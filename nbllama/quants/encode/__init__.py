"""Quantisers, which encode float32 rows as GGUF weight types; `nbllama.quants` decodes them.

There is one module per family and one encoder per type. Every encoder has the signature
`encode_x(x, src, n_blocks, out, dst)`. It encodes `n_blocks` blocks of `x` (float32), starting at
element `src`, into `out` (uint8), starting at byte `dst`. The formulas are from `ggml-quants.c` in
llama.cpp.
"""

from nbllama.quants.encode.encode import QUANTISED, quantise

__all__ = ["QUANTISED", "quantise"]
