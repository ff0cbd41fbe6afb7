"""Vectorised decoders for Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

See `nbllama.quants.legacy` for the formulas.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, u32
from nbllama.quants._vec import bits16, load16, load32, signed, store, unsigned


@kernel()
def decode_q4_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 8), where q has four bits."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 32 * b
        d, qs = f16(raw, at), load16(raw, at + 2)
        store(out, to, d * signed((qs & 15) - 8))
        store(out, to + 16, d * signed((qs >> 4) - 8))


@kernel()
def decode_q4_1(raw, src, n_blocks, out, dst):
    """Decode w = d * q + m, where q has four bits."""
    for b in range(n_blocks):
        at, to = src + 20 * b, dst + 32 * b
        d, m, qs = f16(raw, at), f16(raw, at + 2), load16(raw, at + 4)
        store(out, to, d * unsigned(qs & 15) + m)
        store(out, to + 16, d * unsigned(qs >> 4) + m)


@kernel()
def decode_q5_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (q - 16), where q has five bits."""
    for b in range(n_blocks):
        at, to = src + 22 * b, dst + 32 * b
        d, high, qs = f16(raw, at), u32(raw, at + 2), load16(raw, at + 6)
        store(out, to, d * signed(((qs & 15) | (bits16(high) << 4)) - 16))
        store(out, to + 16, d * signed(((qs >> 4) | (bits16(high >> 16) << 4)) - 16))


@kernel()
def decode_q5_1(raw, src, n_blocks, out, dst):
    """Decode w = d * q + m, where q has five bits."""
    for b in range(n_blocks):
        at, to = src + 24 * b, dst + 32 * b
        d, m = f16(raw, at), f16(raw, at + 2)
        high, qs = u32(raw, at + 4), load16(raw, at + 8)
        store(out, to, d * unsigned((qs & 15) | (bits16(high) << 4)) + m)
        store(out, to + 16, d * unsigned((qs >> 4) | (bits16(high >> 16) << 4)) + m)


@kernel()
def decode_q8_0(raw, src, n_blocks, out, dst):
    """Decode w = d * q, where q is a signed byte."""
    for b in range(n_blocks):
        at, to = src + 34 * b, dst + 32 * b
        store(out, to, f16(raw, at) * signed(load32(raw, at + 2)))
