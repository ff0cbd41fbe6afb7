"""Panels: the memory layout of a matrix product's second operand.

    xp[p, k, j] = x[p*PANEL + j, k]        x `[N, K]`, zeros for tokens past N

The numbers of `PANEL` neighbouring tokens are contiguous in memory for each k, so the micro-kernel
(`simd.fma_tile`) can load them as vectors. Packing takes one pass over x, and all products with x
share the packed copy.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, VL
from nbllama.kernels.simd import transpose_tile
from nbllama.ops.op import check_array, readonly

NO_PANELS = np.empty((0, 0, PANEL), np.float32)


@kernel()
def pack_panel(x, n, p, xp):
    """Write xp[p, k, j] = x[p*PANEL + j, k] for one panel, with zeros past token n."""
    t0 = p * PANEL
    have = min(PANEL, n - t0)
    width = x.shape[1]
    whole = width // VL * VL if have == PANEL else 0
    for k in range(0, whole, VL):
        for j in range(0, PANEL, VL):
            transpose_tile(x, (t0 + j) * width + k, width, xp, (p * width + k) * PANEL + j, PANEL)
    for k in range(whole, width):
        for j in range(have):
            xp[p, k, j] = x[t0 + j, k]
        for j in range(have, PANEL):
            xp[p, k, j] = np.float32(0.0)


@kernel(parallel=True)
def _pack(x, n, xp):
    for p in prange(xp.shape[0]):
        pack_panel(x, n, p, xp)


def n_panels(n: int) -> int:
    """Return the number of panels for `n` tokens."""
    return -(-n // PANEL)


def panel_floats(n: int, k: int) -> int:
    """Return the number of floats that `n` tokens of width `k` occupy when packed."""
    return n_panels(n) * PANEL * k


def panels_of(x: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Return a view of the start of float32 `memory` as panels for x `[N, K]`.

    The panels are `[n_panels(N), K, PANEL]`.
    """
    if np.ndim(x) != 2:
        raise ValueError(f"pack: x has shape {np.shape(x)}, expected [N, K]")
    check_array("pack", "x", x, x.shape)
    n, k = x.shape
    if memory.dtype != np.float32 or memory.size < panel_floats(n, k):
        raise ValueError(
            f"pack: a buffer of {memory.size} elements is too small for x of shape {x.shape}"
        )
    return memory.reshape(-1)[: panel_floats(n, k)].reshape(n_panels(n), k, PANEL)


def pack(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Pack x (float32 `[N, K]`) into the start of `out`; return the panels."""
    xp = panels_of(x, out)
    _pack(readonly(x), len(x), xp)
    return xp
