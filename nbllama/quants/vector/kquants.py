"""Vectorised decoders for the K-quants.

See `nbllama.quants.kquants` for the formulas.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, i8, number, u8
from nbllama.quants._vec import load16, load32, signed, store, unsigned
from nbllama.quants.kquants import q3_scale, scale_and_min


@kernel()
def decode_q2_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has two bits."""
    for b in range(n_blocks):
        at, to = src + 84 * b, dst + 256 * b
        d, dmin = f16(raw, at + 80), f16(raw, at + 82)
        for half in range(2):
            for side in range(2):
                qs = load16(raw, at + 16 + 32 * half + 16 * side)
                for field in range(4):
                    g = 8 * half + 2 * field + side
                    both = u8(raw, at + g)
                    scale, low = d * number(both & 15), dmin * number(both >> 4)
                    store(out, to + 16 * g, scale * unsigned((qs >> (2 * field)) & 3) - low)


@kernel()
def decode_q3_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * (scale - 32)) * (q - 4), where the third bit of q is in `hmask`."""
    for b in range(n_blocks):
        at, to = src + 110 * b, dst + 256 * b
        d = f16(raw, at + 108)
        for half in range(2):
            for side in range(2):
                qs = load16(raw, at + 32 + 32 * half + 16 * side)
                hmask = load16(raw, at + 16 * side) >> (4 * half)
                for field in range(4):
                    g = 8 * half + 2 * field + side
                    scale = d * number(q3_scale(raw, at + 96, g) - 32)
                    q = ((qs >> (2 * field)) & 3) | (((hmask >> field) & 1) << 2)
                    store(out, to + 16 * g, scale * signed(q - 4))


@kernel()
def decode_q4_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has four bits.

    Groups 2p and 2p + 1 are in the low and high four bits of the same 32 bytes.
    """
    for b in range(n_blocks):
        at, to = src + 144 * b, dst + 256 * b
        d, dmin = f16(raw, at), f16(raw, at + 2)
        for pair in range(4):
            qs = load32(raw, at + 16 + 32 * pair)
            for side in range(2):
                g = 2 * pair + side
                six, least = scale_and_min(raw, at + 4, g)
                scale, low = d * number(six), dmin * number(least)
                store(out, to + 32 * g, scale * unsigned((qs >> (4 * side)) & 15) - low)


@kernel()
def decode_q5_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * q - dmin * min, where q has five bits.

    The low four bits are packed as in Q4_K. For group g, the fifth bit is bit g of a byte of `qh`.
    """
    for b in range(n_blocks):
        at, to = src + 176 * b, dst + 256 * b
        d, dmin, qh = f16(raw, at), f16(raw, at + 2), load32(raw, at + 16)
        for pair in range(4):
            qs = load32(raw, at + 48 + 32 * pair)
            for side in range(2):
                g = 2 * pair + side
                six, least = scale_and_min(raw, at + 4, g)
                scale, low = d * number(six), dmin * number(least)
                q = ((qs >> (4 * side)) & 15) | (((qh >> g) & 1) << 4)
                store(out, to + 32 * g, scale * unsigned(q) - low)


@kernel()
def decode_q6_k(raw, src, n_blocks, out, dst):
    """Decode w = (d * scale) * (q - 32), where q has four bits in `ql` and two in `qh`."""
    for b in range(n_blocks):
        at, to = src + 210 * b, dst + 256 * b
        d = f16(raw, at + 208)
        for half in range(2):
            for side in range(2):
                qh = load16(raw, at + 128 + 32 * half + 16 * side)
                for field in range(4):
                    g = 8 * half + 2 * field + side
                    ql = load16(raw, at + 64 * half + 32 * (field & 1) + 16 * side)
                    high = ((qh >> (2 * field)) & 3) << 4
                    q = ((ql >> (4 * (field >> 1))) & 15) | high
                    scale = d * number(i8(raw, at + 192 + g))
                    store(out, to + 16 * g, scale * signed(q - 32))
