"""llama.cpp's own quantisers and decoders."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType

from tests.oracle.lib import TO_FLOAT, TypeTraits, function

_traits = function("ggml_get_type_traits", C.POINTER(TypeTraits), C.c_int)
_requires_imatrix = function("ggml_quantize_requires_imatrix", C.c_bool, C.c_int)
_quantize_chunk = function(
    "ggml_quantize_chunk",
    C.c_size_t,
    C.c_int,
    C.c_void_p,
    C.c_void_p,
    C.c_int64,
    C.c_int64,
    C.c_int64,
    C.c_void_p,
)

# Every weight type that llama.cpp can both write and read.
QUANT_TYPES: dict[str, int] = {
    name: int(GGMLQuantizationType[name])
    for name in (
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K "
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 "
        "NVFP4 Q1_0"
    ).split()
}


def _known_traits(type_id: int) -> TypeTraits:
    if int(type_id) not in QUANT_TYPES.values():
        raise ValueError(f"type {type_id} is not one of {QUANT_TYPES}")
    return _traits(int(type_id)).contents


def row_bytes(type_id: int, n_elements: int) -> int:
    """Bytes of `n_elements` weights of a type; ValueError unless they are whole blocks."""
    traits = _known_traits(type_id)
    if n_elements <= 0 or n_elements % traits.blck_size:
        raise ValueError(f"{n_elements} elements are no whole blocks of {traits.blck_size}")
    return n_elements // traits.blck_size * traits.type_size


def quantize(type_id: int, rows: np.ndarray, imatrix: np.ndarray | None = None) -> bytes:
    """`ggml_quantize_chunk` of float `rows` [n, k] (or [k], one row) to a weight type.

    `imatrix` [k] is the importance of each column; types that cannot do without it (IQ1_S,
    IQ2_XXS, IQ2_XS) get ones. Returns n * row_bytes(type_id, k) bytes. Raises ValueError for an
    unknown type or a row that is not whole blocks.
    """
    rows = np.ascontiguousarray(np.atleast_2d(rows), dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"rows has shape {rows.shape}, expected [n, k]")
    n, k = rows.shape
    out = np.zeros(n * row_bytes(type_id, k), dtype=np.uint8)
    if imatrix is None and _requires_imatrix(int(type_id)):
        imatrix = np.ones(k, dtype=np.float32)
    if imatrix is not None:
        imatrix = np.ascontiguousarray(imatrix, dtype=np.float32)
        if imatrix.shape != (k,):
            raise ValueError(f"imatrix has shape {imatrix.shape}, expected ({k},)")
    written = _quantize_chunk(
        int(type_id),
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n,
        k,
        None if imatrix is None else imatrix.ctypes.data,
    )
    if written != out.size:
        raise RuntimeError(f"ggml_quantize_chunk wrote {written} bytes, expected {out.size}")
    return out.tobytes()


def decoder(type_id: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """`to_float` of a type as f(raw, out), uint8 and float32, contiguous; sizes are not checked."""
    if int(type_id) == GGMLQuantizationType.F32:
        return lambda raw, out: np.copyto(out, raw.view(np.float32))
    to_float = TO_FLOAT(_known_traits(type_id).to_float)
    return lambda raw, out: to_float(raw.ctypes.data, out.ctypes.data, out.size)


def dequantize(type_id: int, raw: bytes | np.ndarray, n_elements: int) -> np.ndarray:
    """llama.cpp's decoder of a type (`to_float` of its traits): float32 [n_elements].

    Raises ValueError unless `raw` holds exactly the bytes of `n_elements` weights.
    """
    source = np.frombuffer(bytes(raw), dtype=np.uint8)
    if source.size != row_bytes(type_id, n_elements):
        raise ValueError(f"{source.size} bytes, expected {row_bytes(type_id, n_elements)}")
    out = np.zeros(n_elements, dtype=np.float32)
    decoder(type_id)(source, out)
    return out
