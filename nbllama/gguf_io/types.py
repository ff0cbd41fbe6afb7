"""Constants of the GGUF format: metadata value types, and tensor types with their block sizes.

Ids and names are the same as in ggml (`enum ggml_type`, `enum gguf_type`). With this table, reading
a file does not require the `gguf` package; a test compares the table with the package.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class ValueType(IntEnum):
    """The type of a metadata value, numbered as in `gguf.GGUFValueType`."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: dict[int, np.dtype] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
"""Numpy type of each fixed-size value type."""


class TensorType(NamedTuple):
    """A storage type for tensors, with `block_size` elements in `type_size` bytes.

    `family` is the module of `nbllama.quants` that decodes the type, or "" for types that are never
    used for weights. `scales` contains the byte offsets, within a block, of the half-precision
    floats that scale its weights.
    """

    name: str
    id: int
    block_size: int
    type_size: int
    family: str = ""
    scales: tuple[int, ...] = ()

    def nbytes(self, n_elements: int) -> int:
        """Return the size of `n_elements` elements in bytes; they must fill whole blocks."""
        return n_elements // self.block_size * self.type_size


TENSOR_TYPES: dict[int, TensorType] = {
    t.id: t
    for t in (
        TensorType("F32", 0, 1, 4, "floats"),
        TensorType("F16", 1, 1, 2, "floats"),
        TensorType("BF16", 30, 1, 2, "floats"),
        TensorType("Q4_0", 2, 32, 18, "legacy", (0,)),
        TensorType("Q4_1", 3, 32, 20, "legacy", (0, 2)),
        TensorType("Q5_0", 6, 32, 22, "legacy", (0,)),
        TensorType("Q5_1", 7, 32, 24, "legacy", (0, 2)),
        TensorType("Q8_0", 8, 32, 34, "legacy", (0,)),
        TensorType("Q2_K", 10, 256, 84, "kquants", (80, 82)),
        TensorType("Q3_K", 11, 256, 110, "kquants", (108,)),
        TensorType("Q4_K", 12, 256, 144, "kquants", (0, 2)),
        TensorType("Q5_K", 13, 256, 176, "kquants", (0, 2)),
        TensorType("Q6_K", 14, 256, 210, "kquants", (208,)),
        TensorType("IQ1_S", 19, 256, 50, "iquants", (0,)),
        TensorType("IQ1_M", 29, 256, 56, "iquants"),
        TensorType("IQ2_XXS", 16, 256, 66, "iquants", (0,)),
        TensorType("IQ2_XS", 17, 256, 74, "iquants", (0,)),
        TensorType("IQ2_S", 22, 256, 82, "iquants", (0,)),
        TensorType("IQ3_XXS", 18, 256, 98, "iquants", (0,)),
        TensorType("IQ3_S", 21, 256, 110, "iquants", (0,)),
        TensorType("IQ4_NL", 20, 32, 18, "iq4", (0,)),
        TensorType("IQ4_XS", 23, 256, 136, "iq4", (0,)),
        TensorType("TQ1_0", 34, 256, 54, "ternary", (52,)),
        TensorType("TQ2_0", 35, 256, 66, "ternary", (64,)),
        TensorType("MXFP4", 39, 32, 17, "mxfp4"),
        TensorType("NVFP4", 40, 64, 36, "nvfp4"),
        TensorType("Q1_0", 41, 128, 18, "binary", (0,)),
        # never used for weights
        TensorType("Q8_K", 15, 256, 292),
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
    )
}
"""Every tensor type that can be read from a file, by id.

A new weight type requires a row in this table and a decoder in the module of its family.
"""

UNSUPPORTED_TYPES: dict[int, str] = {
    4: "Q4_2 (removed from ggml)",
    5: "Q4_3 (removed from ggml)",
    9: "Q8_1 (an intermediate type, never stored)",
    31: "Q4_0_4_4 (removed from ggml)",
    32: "Q4_0_4_8 (removed from ggml)",
    33: "Q4_0_8_8 (removed from ggml)",
    36: "IQ4_NL_4_4 (removed from ggml)",
    37: "IQ4_NL_4_8 (removed from ggml)",
    38: "IQ4_NL_8_8 (removed from ggml)",
}
"""Names of unsupported types from current and earlier versions of ggml, for error messages."""

NUMPY_TENSOR_TYPES: dict[np.dtype, int] = {
    np.dtype("<f4"): 0,
    np.dtype("<f2"): 1,
    np.dtype("i1"): 24,
    np.dtype("<i2"): 25,
    np.dtype("<i4"): 26,
    np.dtype("<i8"): 27,
    np.dtype("<f8"): 28,
}
"""The tensor type for each numpy dtype that can be written."""
