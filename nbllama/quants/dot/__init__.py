"""Dot products of int8 blocks of x and undecoded rows of W, with one module per family.

Every kernel has the signature `dot_x(raw, src, n_blocks, q, d, sums, c) -> float32`. It computes
the dot product of `n_blocks` blocks of x, starting at block `c`, and the same number of weights,
starting at byte `src` of `raw`. x consists of the int8 numbers `q`, their scales `d` (one per
`int8_block(type_id)` numbers) and `sums`. For blocks of 32, `sums` is float32 and contains d times
the sum of each block; for blocks of 256, it is int16 and contains the sum of every 16 numbers. All
arrays are flat. A block of W is as long as a block of x (for NVFP4, as long as two blocks of x).
The products within a block are summed exactly, as integers. The sums of the blocks are added in
float32, in eight lanes, in ascending order.

Like `nbllama.quants.decode_blocks`, `dot_blocks(type_id, ...)` calls the kernel of a type that is
known at compile time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbllama.quants.base import QUANTS

_FAMILIES = {
    "legacy": ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    "kquants": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "iq4": ("IQ4_NL", "IQ4_XS"),
    "nvfp4": ("NVFP4",),
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names}
SUMMED = 16  # numbers of x per element of `sums`


def int8_block(type_id: int) -> int:
    """Return how many numbers of x share a scale: 32 or 256.

    Returns 0 if the type has no integer dot product.
    """
    t = QUANTS[type_id]
    if t.name not in _FAMILY:
        return 0
    return 256 if t.block_size == 256 else 32


def find_dot(type_id: int) -> Any:
    """Return a type's dot product kernel. Raises KeyError if the type has none."""
    name = QUANTS[type_id].name
    module = import_module(f"nbllama.quants.dot.{_FAMILY[name]}")
    return getattr(module, f"dot_{name.lower()}")


def dot_blocks(
    type_id: int, raw: Any, src: Any, n_blocks: Any, q: Any, d: Any, sums: Any, c: Any
) -> Any:
    """Compute the dot product of `n_blocks` blocks of x and W inside a kernel, without checks."""
    return find_dot(type_id)(raw, src, n_blocks, q, d, sums, c)


@overload(dot_blocks, prefer_literal=True, inline="always")
def _dot_blocks(type_id, raw, src, n_blocks, q, d, sums, c):
    if not isinstance(type_id, types.IntegerLiteral):
        raise TypingError("dot_blocks: type_id must be a literal integer")
    kernel = find_dot(type_id.literal_value)

    def dot_this_type(type_id, raw, src, n_blocks, q, d, sums, c):
        return kernel(raw, np.int64(src), np.int64(n_blocks), q, d, sums, np.int64(c))

    return dot_this_type
