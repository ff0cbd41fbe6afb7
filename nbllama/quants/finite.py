"""`check_finite`: are all weights of a tensor numbers? (llama.cpp's `--check-tensors`)

One NaN scale in a file of 4 GB makes every loss NaN, thousands of operations away from its cause.
Codes of a block are always finite, so it is enough to look at the scales: one or two halves per
block. In the plain formats every number is looked at.

An IEEE half, a bfloat16 and the upper half of a float32 are infinite or NaN when all bits of their
exponent are set, so one kernel serves them all: a 16-bit field every `stride` bytes, and a mask.

Two types differ. IQ1_M spreads its scale over four fields. The scale of MXFP4 is an exponent: 255
is NaN by its specification, and 253 and 254 overflow float32 together with the largest codes.
"""

from __future__ import annotations

import numpy as np

from nbllama._jit import kernel
from nbllama.errors import GGUFError, shown
from nbllama.quants._raw import u8, u16
from nbllama.quants.base import nbytes, quant_type
from nbllama.quants.decode import as_readonly

_HALF_EXPONENT, _FLOAT_EXPONENT = 0x7C00, 0x7F80
_CHUNK = 1024
_MXFP4_TOO_LARGE = 253


@kernel()
def _first_special(raw, at, stride, n, mask):  # type: ignore[no-untyped-def]
    """First i < n whose u16 at byte `at + stride * i` has all bits of `mask`; -1 if none has."""
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        found = 0
        for i in range(start, stop):
            found |= (u16(raw, at + stride * i) & mask) == mask
        if found:
            for i in range(start, stop):
                if (u16(raw, at + stride * i) & mask) == mask:
                    return i
    return -1


@kernel()
def _first_special_iq1_m(raw, n):  # type: ignore[no-untyped-def]
    """First of n IQ1_M blocks whose scale is infinite or NaN; -1 if none is.

    The half's sign and exponent are bits 15 .. 10: the top nibble and half of the next one.
    """
    for i in range(n):
        at = 56 * i + 48
        top, next_one = u16(raw, at + 6) >> 12, u16(raw, at + 4) >> 12
        if (top & 7) == 7 and (next_one & 12) == 12:
            return i
    return -1


@kernel()
def _first_special_mxfp4(raw, n):  # type: ignore[no-untyped-def]
    """First of n MXFP4 blocks whose scale is NaN or overflows; -1 if none does."""
    for i in range(n):
        if u8(raw, 17 * i) >= _MXFP4_TOO_LARGE:
            return i
    return -1


def first_special(type_id: int, raw: np.ndarray, n_elements: int) -> int:
    """Index of the first block (F32, F16, BF16: number) that is not finite; -1 when all are.

    raw uint8 [nbytes(type_id, n_elements)]. Raises GGUFError for an unsupported type, ValueError
    when sizes do not match.
    """
    t = quant_type(type_id)
    raw = as_readonly(raw)
    if raw.size != nbytes(type_id, n_elements):
        raise ValueError(f"{raw.size} bytes, wanted {nbytes(type_id, n_elements)}")
    n = n_elements // t.block_size
    if t.name == "IQ1_M":
        return int(_first_special_iq1_m(raw, n))
    if t.name == "MXFP4":
        return int(_first_special_mxfp4(raw, n))
    mask = _FLOAT_EXPONENT if t.name in ("F32", "BF16") else _HALF_EXPONENT
    fields = t.scales if t.block_size > 1 else (t.type_size - 2,)
    found = [int(_first_special(raw, at, t.type_size, n, mask)) for at in fields]
    return min((i for i in found if i >= 0), default=-1)


def check_finite(type_id: int, raw: np.ndarray, n_elements: int, name: str) -> None:
    """Raise GGUFError naming tensor `name` if a weight in it is, or could be, infinite or NaN.

    Arguments and other errors as of `first_special`.
    """
    i = first_special(type_id, raw, n_elements)
    if i >= 0:
        t = quant_type(type_id)
        what = f"the scale of block {i}" if t.block_size > 1 else f"number {i}"
        raise GGUFError(
            f"tensor {shown(name)} ({t.name}): {what} is infinite or not a number;"
            " the file is damaged or was converted badly"
        )
