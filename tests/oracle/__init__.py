"""Real llama.cpp for the tests: quantisers, tokenizer, whole models and single ggml ops.

The shared library of the PyPI wheel `xllamacpp` exports the C functions `llama_*` and `ggml_*`;
`lib.py` declares the structures and signatures of the pinned version, the other files wrap them.
Importing this package skips the importing test module if `xllamacpp` is missing.
"""

from tests.oracle.gguf_file import decode_to_f32
from tests.oracle.model import LlamaModel
from tests.oracle.ops import Graph, Raw, adamw_step, ggml, mul_mat, mul_mat_back
from tests.oracle.quant import QUANT_TYPES, dequantize, quantize, row_bytes
from tests.oracle.vocab import LlamaVocab, Vocab

__all__ = [
    "QUANT_TYPES",
    "Graph",
    "LlamaModel",
    "LlamaVocab",
    "Raw",
    "Vocab",
    "adamw_step",
    "decode_to_f32",
    "dequantize",
    "ggml",
    "mul_mat",
    "mul_mat_back",
    "quantize",
    "row_bytes",
]
