"""Quantise rows from Python code, and check sizes and values before and after the kernel runs."""

from __future__ import annotations

from importlib import import_module

import numpy as np

from nbllama.quants import nbytes, quant_type
from nbllama.quants.finite import first_special

_NAMES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
QUANTISED: tuple[str, ...] = (*_NAMES, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""The names of the weight types that can be written."""

_LARGEST = 1e9  # larger than any weight that a type with a half as its scale can represent


def quantise(type_id: int, rows: np.ndarray) -> np.ndarray:
    """Encode float32 rows [n, k] (or [k]) as a weight type.

    The result is uint8 [nbytes(type_id, n * k)] and does not depend on the number of threads.
    Raises GGUFError for a type that cannot be decoded. Raises ValueError for a type that cannot be
    written, for rows that are not float32 or contain a partial block, for NaN and infinities, and
    for weights that are too large for the type.
    """
    t = quant_type(type_id)
    if t.name not in QUANTISED:
        raise ValueError(f"{t.name} cannot be written")
    if rows.dtype != np.float32 or rows.ndim not in (1, 2) or rows.size == 0:
        raise ValueError(f"rows must be float32 [n, k], not {rows.dtype} {rows.shape}")
    if rows.shape[-1] % t.block_size:
        raise ValueError(f"rows of {rows.shape[-1]} weights do not fill whole {t.name} blocks")
    x = np.ascontiguousarray(rows).reshape(-1)
    low, high = float(x.min()), float(x.max())  # NaN if any weight is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("a weight is infinite or not a number")
    out = np.empty(nbytes(type_id, x.size), np.uint8)
    if t.name == "F32":
        out[:] = x.view(np.uint8)
        return out
    too_large = ValueError(f"the largest weight, {max(-low, high):g}, is too large for {t.name}")
    if t.name != "BF16" and max(-low, high) > _LARGEST:
        raise too_large
    encoder = getattr(import_module("nbllama.quants.encode.entries"), t.name.lower())
    encoder(x, x.size // t.block_size, out)
    if first_special(type_id, out, x.size) >= 0:
        raise too_large
    return out
