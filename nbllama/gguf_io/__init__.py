"""Read GGUF files with full checks, and write them atomically."""

from __future__ import annotations

from nbllama.gguf_io.file import GGUFFile, TensorInfo
from nbllama.gguf_io.parts import open_gguf
from nbllama.gguf_io.strings import StringArray
from nbllama.gguf_io.types import TENSOR_TYPES, UNSUPPORTED_TYPES, TensorType, ValueType
from nbllama.gguf_io.writer import RawTensor, write_gguf

__all__ = [
    "TENSOR_TYPES",
    "UNSUPPORTED_TYPES",
    "GGUFFile",
    "RawTensor",
    "StringArray",
    "TensorInfo",
    "TensorType",
    "ValueType",
    "open_gguf",
    "write_gguf",
]
