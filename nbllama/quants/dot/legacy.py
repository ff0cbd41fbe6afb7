"""Products of Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 and int8 blocks of 32 (see `quants.legacy`).

A block of W consists of a scale d, codes c and, in some types, a minimum m. A block of x consists
of a scale e and int8 numbers n (`q`). A weight is w = d (c - z) or w = d c + m, so

    sum w x = d e sum c n - z d (e sum n)      or      d e sum c n + m (e sum n)

where `sums` contains e sum n.

llama.cpp: `ggml_vec_dot_q4_0_q8_0`, `_q4_1_q8_1`, `_q5_0_q8_0`, `_q5_1_q8_1`, `_q8_0_q8_0`.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import fma
from nbllama.quants._raw import u32
from nbllama.quants._vec import load32
from nbllama.quants.dot._lanes import (
    add_scaled,
    bits32,
    bytes32,
    dot,
    dot_signed,
    first,
    half8,
    nibbles,
    sum8,
    zeros8,
)


@kernel(inline=True)
def dot_q4_0(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q4_0, with z = 8."""
    total, rest = zeros8(), np.float32(0)
    for b in range(n_blocks):
        at = src + 18 * b
        scale = half8(raw, at)
        total = add_scaled(
            total, dot(nibbles(raw, at + 2), bytes32(q, 32 * (c + b))), d[c + b] * scale
        )
        rest = fma(first(scale), sums[c + b], rest)
    return sum8(total) - np.float32(8) * rest


@kernel(inline=True)
def dot_q4_1(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q4_1, which has a minimum."""
    total, rest = zeros8(), np.float32(0)
    for b in range(n_blocks):
        at = src + 20 * b
        dots = dot(nibbles(raw, at + 4), bytes32(q, 32 * (c + b)))
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
        rest = fma(first(half8(raw, at + 2)), sums[c + b], rest)
    return sum8(total) + rest


@kernel(inline=True)
def dot_q5_0(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q5_0, with z = 16. The fifth bits of the codes are in four bytes."""
    total, rest = zeros8(), np.float32(0)
    for b in range(n_blocks):
        at = src + 22 * b
        scale = half8(raw, at)
        codes = nibbles(raw, at + 6) | bits32(u32(raw, at + 2))
        total = add_scaled(total, dot(codes, bytes32(q, 32 * (c + b))), d[c + b] * scale)
        rest = fma(first(scale), sums[c + b], rest)
    return sum8(total) - np.float32(16) * rest


@kernel(inline=True)
def dot_q5_1(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q5_1, which has five-bit codes as in Q5_0, and a minimum."""
    total, rest = zeros8(), np.float32(0)
    for b in range(n_blocks):
        at = src + 24 * b
        codes = nibbles(raw, at + 8) | bits32(u32(raw, at + 4))
        dots = dot(codes, bytes32(q, 32 * (c + b)))
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
        rest = fma(first(half8(raw, at + 2)), sums[c + b], rest)
    return sum8(total) + rest


@kernel(inline=True)
def dot_q8_0(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q8_0, with z = 0 and signed codes."""
    total = zeros8()
    for b in range(n_blocks):
        at = src + 34 * b
        dots = dot_signed(load32(raw, at + 2), bytes32(q, 32 * (c + b)))
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
    return sum8(total)
