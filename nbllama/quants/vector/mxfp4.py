"""Vectorised decoder for MXFP4.

See `nbllama.quants.mxfp4` for the layout and formula.
"""

from __future__ import annotations

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import u8
from nbllama.quants._vec import load16, lookup, signed, store
from nbllama.quants.mxfp4 import power_of_two

_VALUES = _grids.MXFP4


@kernel()
def decode_mxfp4(raw, src, n_blocks, out, dst):
    """Decode w = 2^(e - 128) * value[q]."""
    for b in range(n_blocks):
        at, to = src + 17 * b, dst + 32 * b
        d, qs = power_of_two(u8(raw, at)), load16(raw, at + 1)
        store(out, to, d * signed(lookup(_VALUES, qs & 15)))
        store(out, to + 16, d * signed(lookup(_VALUES, qs >> 4)))
