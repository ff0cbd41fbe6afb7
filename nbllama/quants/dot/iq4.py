"""Dot products of IQ4_NL with int8 blocks of 32, and of IQ4_XS with int8 blocks of 256.

The layouts are explained in `nbllama.quants.iq4`.

llama.cpp: `ggml_vec_dot_iq4_nl_q8_0`, `ggml_vec_dot_iq4_xs_q8_K`.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import u8, u16
from nbllama.quants._vec import load16, lookup
from nbllama.quants.dot._lanes import (
    add_scaled,
    bytes32,
    dot_signed,
    half8,
    join,
    no_dots,
    sum8,
    zeros8,
)

_VALUES = _grids.IQ4


@kernel()
def values32(raw, at):
    """Look up the values of the 32 codes in the 16 bytes at `at`: low halves, then high halves."""
    qs = load16(raw, at)
    return join(lookup(_VALUES, qs & 15), lookup(_VALUES, qs >> 4))


@kernel(inline=True)
def dot_iq4_nl(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for IQ4_NL, which has one scale per block."""
    total = zeros8()
    for b in range(n_blocks):
        at = src + 18 * b
        dots = dot_signed(values32(raw, at + 2), bytes32(q, 32 * (c + b)))
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
    return sum8(total)


@kernel(inline=True)
def dot_iq4_xs(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for IQ4_XS, which has groups of 32 with signed six-bit scales."""
    total = zeros8()
    for b in range(n_blocks):
        at, dots = src + 136 * b, no_dots()
        high = u16(raw, at + 2)
        for g in range(8):
            low = (u8(raw, at + 4 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = (low | (((high >> (2 * g)) & 3) << 4)) - 32
            x = bytes32(q, 256 * (c + b) + 32 * g)
            dots = dots + dot_signed(values32(raw, at + 8 + 16 * g), x) * scale
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
    return sum8(total)
