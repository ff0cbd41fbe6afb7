"""Vectorised decoder for NVFP4.

See `nbllama.quants.nvfp4` for the layout and formula.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants import _grids
from nbllama.quants._raw import u8
from nbllama.quants._vec import lookup, nibbles8, signed, store

_VALUES = _grids.MXFP4


def _half_scales() -> np.ndarray:
    """Return scale(c) / 2 for every byte c, float32 [256]."""
    c = np.arange(256)
    e, m = (c >> 3) & 15, c & 7
    scales = np.where(e > 0, (1 + m / 8) * 2.0 ** (e - 8), m * 2.0**-10).astype(np.float32)
    scales[127] = 0
    return scales


HALF_SCALES = _half_scales()


@kernel()
def decode_nvfp4(raw, src, n_blocks, out, dst):
    """Decode w = scale(c) / 2 * value[q]."""
    for b in range(n_blocks):
        at, to = src + 36 * b, dst + 64 * b
        for s in range(4):
            values = lookup(_VALUES, nibbles8(raw, at + 4 + 8 * s))
            store(out, to + 16 * s, HALF_SCALES[u8(raw, at + s)] * signed(values))
