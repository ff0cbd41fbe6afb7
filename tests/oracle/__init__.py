"""Real llama.cpp, as the tests see it: quantisers, tokenizer, whole models and single ggml ops.

The shared library of the PyPI wheel `xllamacpp` exports the C functions `llama_*` and `ggml_*`;
`lib.py` declares the structures and signatures of the pinned version, the other files wrap them.
Importing this package skips the importing test module where `xllamacpp` is missing.
"""

from tests.oracle.quant import QUANT_TYPES, dequantize, quantize, row_bytes
from tests.oracle.vocab import LlamaVocab, Vocab

__all__ = ["QUANT_TYPES", "LlamaVocab", "Vocab", "dequantize", "quantize", "row_bytes"]
