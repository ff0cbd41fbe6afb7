"""A check that all weights are finite (`check_finite`), like `--check-tensors` in llama.cpp.

A single NaN scale in a 4 GB file makes every loss NaN, thousands of operations away from the cause.
The codes of a block are always finite, so only its scales (one or two halves) are checked. In the
plain formats, every number is checked.

An IEEE half, a bfloat16 and the upper half of a float32 are infinite or NaN if all exponent bits
are set. One kernel therefore handles all three: it reads a 16-bit field every `stride` bytes and
applies a mask. The plain formats are first checked one four-byte word at a time, at a speed limited
only by memory bandwidth. Three types are special. In NVFP4, every scale is finite (llama.cpp reads
NaN as 0). In IQ1_M, the scale is distributed over four fields. In MXFP4, the scale is an exponent:
255 is NaN in the specification, and with 253 and 254 the largest codes overflow float32.
"""

from __future__ import annotations

import numpy as np

from nbllama.errors import GGUFError, shown
from nbllama.gguf_io.types import TensorType
from nbllama.kernels.jit import kernel
from nbllama.quants._raw import u8, u16, u32
from nbllama.quants.base import nbytes, quant_type
from nbllama.quants.decode import as_readonly

_HALF_EXPONENT, _FLOAT_EXPONENT = 0x7C00, 0x7F80
_WORD_MASKS = {"F32": 0x7F800000, "F16": 0x7C007C00, "BF16": 0x7F807F80}
_WORD_STEPS = {"F32": 0x00800000, "F16": 0x04000400, "BF16": 0x00800080}
_MXFP4_TOO_LARGE = 253


@kernel()
def _first_special(raw, at, stride, start, stop, mask):
    """Return the first i in start .. stop-1 for which all bits of `mask` are set, else -1.

    The bits are read from the u16 at `at + stride * i`.
    """
    for i in range(start, stop):
        if (u16(raw, at + stride * i) & mask) == mask:
            return i
    return -1


@kernel()
def _special_in_words(raw, n_words, mask, step):
    """Return whether any of `n_words` u32 words contains a number that is not finite.

    A word contains one F32, two F16 or two BF16 numbers. `mask` selects the exponent bits, and
    `step` is the lowest bit of each exponent. Adding `step` carries into the sign bit only if all
    exponent bits are set.
    """
    carries = np.int32(0)
    for i in range(n_words):
        carries |= np.int32(np.int32(u32(raw, 4 * i) & mask) + step)
    return carries & ((mask << 1) & ~mask & 0x80008000) != 0


@kernel()
def _first_special_iq1_m(raw, n):
    """Return the index of the first of n IQ1_M blocks whose scale is infinite or NaN, else -1.

    The sign and the exponent of a half are bits 15 .. 10, which are the top nibble and the upper
    half of the next nibble.
    """
    for i in range(n):
        at = 56 * i + 48
        top, next_one = u16(raw, at + 6) >> 12, u16(raw, at + 4) >> 12
        if (top & 7) == 7 and (next_one & 12) == 12:
            return i
    return -1


@kernel()
def _first_special_mxfp4(raw, n):
    """Return the index of the first of n MXFP4 blocks whose scale is NaN or overflows, else -1."""
    for i in range(n):
        if u8(raw, 17 * i) >= _MXFP4_TOO_LARGE:
            return i
    return -1


def first_special(type_id: int, raw: np.ndarray, n_elements: int) -> int:
    """Return the index of the first block that is not finite, or -1 if all are finite.

    For F32, F16 and BF16, a block is a single number. `raw` is uint8 [nbytes(type_id, n_elements)].
    Raises GGUFError for an unsupported type, and ValueError if sizes do not match.
    """
    t = quant_type(type_id)
    raw = as_readonly(raw)
    if raw.size != nbytes(type_id, n_elements):
        raise ValueError(f"{raw.size} bytes, expected {nbytes(type_id, n_elements)}")
    n = n_elements // t.block_size
    if t.name == "IQ1_M":
        return int(_first_special_iq1_m(raw, n))
    if t.name == "MXFP4":
        return int(_first_special_mxfp4(raw, n))
    if t.block_size == 1:
        return _first_special_number(t, raw, n)
    found = [int(_first_special(raw, at, t.type_size, 0, n, _HALF_EXPONENT)) for at in t.scales]
    return min((i for i in found if i >= 0), default=-1)


def _first_special_number(t: TensorType, raw: np.ndarray, n: int) -> int:
    words = raw.size // 4
    special = _special_in_words(raw, words, _WORD_MASKS[t.name], _WORD_STEPS[t.name])
    start = 0 if special else 4 * words // t.type_size
    mask = _HALF_EXPONENT if t.name == "F16" else _FLOAT_EXPONENT
    return int(_first_special(raw, t.type_size - 2, t.type_size, start, n, mask))


def check_finite(
    type_id: int, raw: np.ndarray, n_elements: int, name: str, *, path: str = ""
) -> None:
    """Raise GGUFError for tensor `name` if any of its weights is, or could be, infinite or NaN.

    The error begins with `path`, the name of the file, if it is given. The other arguments and
    errors are the same as for `first_special`.
    """
    i = first_special(type_id, raw, n_elements)
    if i >= 0:
        t = quant_type(type_id)
        what = f"the scale of block {i}" if t.block_size > 1 else f"number {i}"
        file = f"{shown(path, 400)}: " if path else ""
        raise GGUFError(
            f"{file}tensor {shown(name)} ({t.name}): {what} is infinite or not a number;"
            " the file is damaged or was converted incorrectly"
        )
