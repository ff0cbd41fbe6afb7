"""Products of the K-quants and int8 blocks of 256 (layouts: `nbllama.quants.kquants`).

A block of W consists of d, dmin, and groups g of 16 or 32 codes c. Each group has an integer scale
s and, in some types, a minimum m. The other types subtract a constant z from each code. A block of
x consists of a scale e and int8 numbers n. All sums within a block are integers:

    sum w x = e d sum_g s_g (sum c n - z sum n)  -  e dmin sum_g m_g sum n

llama.cpp: `ggml_vec_dot_q2_K_q8_K`, `_q3_K_q8_K`, `_q4_K_q8_K`, `_q5_K_q8_K`, `_q6_K_q8_K`.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import u32
from nbllama.quants._vec import load16, load32
from nbllama.quants.dot._lanes import (
    add_scaled,
    bytes32,
    bytes_of,
    dot_scaled,
    dot_sums,
    each_twice,
    half8,
    no_dots,
    scale_of,
    scales_of,
    signed_scales,
    sum8,
    unsigned_scales,
    zeros8,
)

_LOW2, _LOW4, _LOW6 = 0x03030303, 0x0F0F0F0F, 0x3F3F3F3F  # masks for the low bits of four bytes


@kernel()
def scales_and_mins(raw, at):
    """Return the 8 scales and the 8 minima of a Q4_K or Q5_K block, as the bytes of two int64.

    `nbllama.quants.kquants.scale_and_min` explains how the block stores them.
    """
    a, b, c = u32(raw, at), u32(raw, at + 4), u32(raw, at + 8)
    scales = (c & _LOW4) | (((a >> 6) & _LOW2) << 4)
    mins = ((c >> 4) & _LOW4) | (((b >> 6) & _LOW2) << 4)
    return (a & _LOW6) | (scales << 32), (b & _LOW6) | (mins << 32)


@kernel(inline=True)
def dot_q2_k(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q2_K, which has groups of 16 with minima."""
    total = zeros8()
    for b in range(n_blocks):
        at = src + 84 * b
        both = load16(raw, at)
        scales, dots = unsigned_scales(both & 15), no_dots()
        for half in range(2):
            qs = load32(raw, at + 16 + 32 * half)
            for field in range(4):
                x = bytes32(q, 256 * (c + b) + 128 * half + 32 * field)
                factors = scales_of(scales, 8 * half + 2 * field)
                dots = dots + dot_scaled((qs >> (2 * field)) & 3, x, factors)
        total = add_scaled(total, dots, d[c + b] * half8(raw, at + 80))
        least = dot_sums(unsigned_scales(both >> 4), sums, 16 * (c + b))
        total = add_scaled(total, least, -d[c + b] * half8(raw, at + 82))
    return sum8(total)


@kernel(inline=True)
def dot_q3_k(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q3_K, which has groups of 16 with signed scales, and z = 4.

    The third bits of the codes are in 32 separate bytes.
    """
    total = zeros8()
    for b in range(n_blocks):
        at = src + 110 * b
        u, v, w = u32(raw, at + 96), u32(raw, at + 100), u32(raw, at + 104)
        low = (u & _LOW4) | ((w & _LOW2) << 4)
        low |= ((v & _LOW4) | (((w >> 2) & _LOW2) << 4)) << 32
        high = ((u >> 4) & _LOW4) | (((w >> 4) & _LOW2) << 4)
        high |= (((v >> 4) & _LOW4) | (((w >> 6) & _LOW2) << 4)) << 32
        scales = signed_scales(bytes_of(low, high) - 32)
        dots, hmask = no_dots(), load32(raw, at)
        for half in range(2):
            qs = load32(raw, at + 32 + 32 * half)
            for field in range(4):
                x = bytes32(q, 256 * (c + b) + 128 * half + 32 * field)
                third = ((hmask >> (4 * half + field)) & 1) << 2
                factors = scales_of(scales, 8 * half + 2 * field)
                dots = dots + dot_scaled(((qs >> (2 * field)) & 3) | third, x, factors)
        dots = dots - dot_sums(scales, sums, 16 * (c + b)) * 4
        total = add_scaled(total, dots, d[c + b] * half8(raw, at + 108))
    return sum8(total)


@kernel(inline=True)
def dot_q4_k(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q4_K, which has groups of 32 with minima."""
    total = zeros8()
    for b in range(n_blocks):
        at = src + 144 * b
        low, high = scales_and_mins(raw, at + 4)
        both = bytes_of(low, high)
        scales, dots = unsigned_scales(both), no_dots()
        for pair in range(4):
            qs, to = load32(raw, at + 16 + 32 * pair), 256 * (c + b) + 64 * pair
            dots = dots + dot_scaled(qs & 15, bytes32(q, to), scale_of(scales, 2 * pair))
            factors = scale_of(scales, 2 * pair + 1)
            dots = dots + dot_scaled(qs >> 4, bytes32(q, to + 32), factors)
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
        least = dot_sums(unsigned_scales(each_twice(bytes_of(high, high))), sums, 16 * (c + b))
        total = add_scaled(total, least, -d[c + b] * half8(raw, at + 2))
    return sum8(total)


@kernel(inline=True)
def dot_q5_k(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q5_K, which is like Q4_K but has five-bit codes.

    The fifth bits of group g are bit g of 32 separate bytes.
    """
    total = zeros8()
    for b in range(n_blocks):
        at = src + 176 * b
        low, high = scales_and_mins(raw, at + 4)
        scales, dots, qh = unsigned_scales(bytes_of(low, high)), no_dots(), load32(raw, at + 16)
        for pair in range(4):
            qs, to = load32(raw, at + 48 + 32 * pair), 256 * (c + b) + 64 * pair
            fifth = ((qh >> (2 * pair)) & 1) << 4
            factors = scale_of(scales, 2 * pair)
            dots = dots + dot_scaled((qs & 15) | fifth, bytes32(q, to), factors)
            fifth = ((qh >> (2 * pair + 1)) & 1) << 4
            factors = scale_of(scales, 2 * pair + 1)
            dots = dots + dot_scaled((qs >> 4) | fifth, bytes32(q, to + 32), factors)
        total = add_scaled(total, dots, d[c + b] * half8(raw, at))
        least = dot_sums(unsigned_scales(each_twice(bytes_of(high, high))), sums, 16 * (c + b))
        total = add_scaled(total, least, -d[c + b] * half8(raw, at + 2))
    return sum8(total)


@kernel(inline=True)
def dot_q6_k(raw, src, n_blocks, q, d, sums, c):
    """Compute the product for Q6_K, which has groups of 16 with signed scales, and z = 32."""
    total = zeros8()
    for b in range(n_blocks):
        at = src + 210 * b
        scales, dots = signed_scales(load16(raw, at + 192)), no_dots()
        for half in range(2):
            qh = load32(raw, at + 128 + 32 * half)
            for side in range(2):
                ql = load32(raw, at + 64 * half + 32 * side)
                to, g = 256 * (c + b) + 128 * half + 32 * side, 8 * half + 2 * side
                codes = (ql & 15) | (((qh >> (2 * side)) & 3) << 4)
                dots = dots + dot_scaled(codes, bytes32(q, to), scales_of(scales, g))
                codes = (ql >> 4) | (((qh >> (2 * side + 4)) & 3) << 4)
                factors = scales_of(scales, g + 4)
                dots = dots + dot_scaled(codes, bytes32(q, to + 64), factors)
        dots = dots - dot_sums(scales, sums, 16 * (c + b)) * 32
        total = add_scaled(total, dots, d[c + b] * half8(raw, at + 208))
    return sum8(total)
