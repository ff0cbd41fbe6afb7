"""Decoding functions for Python code, which check all sizes and bounds before a kernel runs.

Kernels do not check anything, and a read past the end of a mapped file kills the process. Python
code must therefore call decoders only through these functions.
"""

from __future__ import annotations

import numpy as np

from nbllama.quants.base import DECODERS, nbytes, quant_type


def as_readonly(raw: np.ndarray) -> np.ndarray:
    """Return a read-only view of `raw`, because kernels are compiled only for read-only input.

    Raises ValueError if `raw` is not a contiguous one-dimensional uint8 array.
    """
    if raw.dtype != np.uint8 or raw.ndim != 1 or not raw.flags.c_contiguous:
        raise ValueError(f"raw must be contiguous uint8 [n], not {raw.dtype} {raw.shape}")
    view = raw.view(np.ndarray)
    view.flags.writeable = False
    return view


def decode(type_id: int, raw: np.ndarray, n_elements: int) -> np.ndarray:
    """Decode a whole tensor.

    `raw` is uint8 [nbytes(type_id, n_elements)], and the result is float32 [n_elements]. Raises
    GGUFError for an unsupported type, and ValueError if sizes do not match.
    """
    raw = as_readonly(raw)
    if raw.size != nbytes(type_id, n_elements):
        raise ValueError(f"{raw.size} bytes, expected {nbytes(type_id, n_elements)}")
    out = np.empty(n_elements, dtype=np.float32)
    DECODERS[type_id](raw, 0, n_elements // quant_type(type_id).block_size, out, 0)
    return out


def decode_rows(type_id: int, raw: np.ndarray, row_elements: int, rows: np.ndarray) -> np.ndarray:
    """Decode the given rows of a matrix, as in an embedding lookup.

    `raw` is uint8 [n_rows * nbytes(type_id, row_elements)], `rows` are integers [n], and the result
    is float32 [n, row_elements]. Raises GGUFError for an unsupported type, ValueError if sizes do
    not match, and IndexError for a row outside the matrix, including a negative index.
    """
    raw = as_readonly(raw)
    rows = np.asarray(rows)
    row_bytes = nbytes(type_id, row_elements)
    if row_bytes == 0 or raw.size % row_bytes:
        raise ValueError(f"{raw.size} bytes are not a multiple of the row size, {row_bytes}")
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"rows must be integers [n], not {rows.dtype} {rows.shape}")
    n_rows = raw.size // row_bytes
    if rows.size and (rows.min() < 0 or rows.max() >= n_rows):
        raise IndexError(f"rows are {rows.min()}..{rows.max()}, but must be 0..{n_rows - 1}")
    out = np.empty((rows.size, row_elements), dtype=np.float32)
    flat = out.reshape(-1)
    decoder, n_blocks = DECODERS[type_id], row_elements // quant_type(type_id).block_size
    for i, row in enumerate(rows.tolist()):
        decoder(raw, row * row_bytes, n_blocks, flat, i * row_elements)
    return out
