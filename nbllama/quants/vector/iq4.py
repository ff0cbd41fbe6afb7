"""Vectorised decoders for IQ4_NL and IQ4_XS.

See `nbllama.quants.iq4` for the layouts and formulas.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import f16, number, u8, u16
from nbllama.quants._vec import load16, lookup, signed, store

_VALUES = _grids.IQ4


@kernel()
def decode_iq4_nl(raw, src, n_blocks, out, dst):
    """Decode w = d * value[q]."""
    for b in range(n_blocks):
        at, to = src + 18 * b, dst + 32 * b
        d, qs = f16(raw, at), load16(raw, at + 2)
        store(out, to, d * signed(lookup(_VALUES, qs & 15)))
        store(out, to + 16, d * signed(lookup(_VALUES, qs >> 4)))


@kernel()
def decode_iq4_xs(raw, src, n_blocks, out, dst):
    """Decode w = (d * (scale - 32)) * value[q]."""
    for b in range(n_blocks):
        at, to = src + 136 * b, dst + 256 * b
        d, high = f16(raw, at), u16(raw, at + 2)
        for g in range(8):
            low = (u8(raw, at + 4 + (g >> 1)) >> (4 * (g & 1))) & 15
            scale = d * number((low | (((high >> (2 * g)) & 3) << 4)) - 32)
            qs = load16(raw, at + 8 + 16 * g)
            store(out, to + 32 * g, scale * signed(lookup(_VALUES, qs & 15)))
            store(out, to + 32 * g + 16, scale * signed(lookup(_VALUES, qs >> 4)))
