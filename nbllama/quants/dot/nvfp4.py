"""Dot products of NVFP4 with int8 blocks of 32, two per block of W.

The layout is explained in `nbllama.quants.nvfp4`.

llama.cpp: `ggml_vec_dot_nvfp4_q8_0`.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import u8
from nbllama.quants._vec import lookup, nibbles8
from nbllama.quants.dot._lanes import (
    add_scaled,
    bytes32,
    dot_signed,
    halves8,
    join,
    sum8,
    zeros8,
)
from nbllama.quants.vector.nvfp4 import HALF_SCALES

_VALUES = _grids.MXFP4


@kernel()
def values16(raw, at):
    """Look up the values of the group of 16 weights whose codes begin at byte `at`."""
    return lookup(_VALUES, nibbles8(raw, at))


@kernel(inline=True)
def dot_nvfp4(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for NVFP4, in which each group's scale applies to four of the 8 lanes."""
    total = zeros8()
    for b in range(n_blocks // 2):
        at = src + 36 * b
        for half in range(2):
            x = c + 2 * b + half
            codes = at + 4 + 16 * half
            w = join(values16(raw, codes), values16(raw, codes + 8))
            scales = halves8(
                HALF_SCALES[u8(raw, at + 2 * half)], HALF_SCALES[u8(raw, at + 2 * half + 1)]
            )
            total = add_scaled(total, dot_signed(w, bytes32(q, 32 * x)), d[x] * scales)
    return sum8(total)
