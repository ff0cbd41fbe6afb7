"""Vectorised decoder for Q1_0.

See `nbllama.quants.binary` for the layout and formula.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants._raw import f16, u16
from nbllama.quants._vec import bits16, signed, store


@kernel()
def decode_q1_0(raw, src, n_blocks, out, dst):
    """Decode w = d * (2 bit - 1)."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 128 * b
        d = f16(raw, at)
        for j in range(8):
            store(out, to + 16 * j, d * signed(bits16(u16(raw, at + 2 + 2 * j)) * 2 - 1))
