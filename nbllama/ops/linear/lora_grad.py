"""The gradients of a LoRA pair, computed in the same pass that packs dy.

    dh = s dy B        dA = dhᵀ x        dB = dyᵀ h         (h = s x Aᵀ, see `ops.linear.lora`)

A task processes a *group* of neighbouring panels. It packs the group's part of dy, multiplies this
part by B while it is in the cache, and sums both outer products over the group's tokens. Then the
sums of all groups are added in ascending order. The grouping depends only on the number of tokens,
so dA and dB are bit-identical for any number of threads.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), section 4.1.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS
from nbllama.kernels.simd import fma_tile, next_task
from nbllama.kernels.threading_layer import get_num_threads
from nbllama.kernels.turns import in_turn
from nbllama.ops.linear.lora import check_outer, packed_rows, reused
from nbllama.ops.linear.panels import n_panels, pack_panel, panels_of
from nbllama.ops.op import check_array, check_output, readonly

COLUMNS = 256  # columns of x or dy that fit in the L1 cache along with their sums
LEAST = 32  # minimum number of tokens in a group
MOST_GROUPS = 16


@kernel()
def _add_outer(hp, p0, p1, x, n, out, group):
    """Set out[group] to the sum of h[t, :]ᵀ x[t, :] over the tokens t in panels p0 to p1 - 1."""
    high, width = hp.shape[1], x.shape[1]
    whole = width // PANEL * PANEL
    at = group * high * width
    for first in range(0, whole, COLUMNS):
        for p in range(p0, p1):
            t0 = p * PANEL
            for r in range(0, high, ROWS):
                for c in range(first, min(first + COLUMNS, whole), PANEL):
                    fma_tile(
                        hp, (p * high + r) * PANEL, PANEL, 1, x, t0 * width + c, width,
                        min(PANEL, n - t0), out, at + r * width + c, width, p == p0,
                    )  # fmt: skip
    for r in range(high):
        for c in range(whole, width):
            total = np.float32(0.0)
            for t in range(p0 * PANEL, min(p1 * PANEL, n)):
                total += hp[t // PANEL, r, t % PANEL] * x[t, c]
            out[group, r, c] = total


@kernel(parallel=True)
def _groups(dy, n, gp, b, dhp, x, hp, sums_a, sums_b, threads, counter):
    """Compute gp and dhp, and each group's sums for dA and dB."""
    n_panels, n_out, high = gp.shape[0], gp.shape[1], b.shape[0]
    n_groups = sums_a.shape[0]
    counter[0] = 0
    for _ in prange(threads):
        group = next_task(counter)
        while group < n_groups:
            p0 = group * n_panels // n_groups
            p1 = (group + 1) * n_panels // n_groups
            for p in range(p0, p1):
                pack_panel(dy, n, p, gp)
                for r in range(0, high, ROWS):
                    fma_tile(
                        b, r * n_out, n_out, 1, gp, p * n_out * PANEL, PANEL, n_out,
                        dhp, (p * high + r) * PANEL, PANEL, True,
                    )  # fmt: skip
            _add_outer(hp, p0, p1, dy, n, sums_b, group)
            _add_outer(dhp, p0, p1, x, n, sums_a, group)
            group = next_task(counter)


@kernel(parallel=True)
def _add_groups(sums_a, sums_b, da, db):
    """Add the groups' sums to da `[R, n_in]` and dbᵀ `[R, n_out]`, COLUMNS columns per task."""
    n_groups, n_out = sums_a.shape[0], db.shape[0]
    of_a = (da.shape[1] + COLUMNS - 1) // COLUMNS
    of_b = (n_out + COLUMNS - 1) // COLUMNS
    for task in prange(of_a + of_b):
        if task < of_a:
            for r in range(da.shape[0]):
                for c in range(task * COLUMNS, min((task + 1) * COLUMNS, da.shape[1])):
                    total = np.float32(0.0)
                    for group in range(n_groups):
                        total += sums_a[group, r, c]
                    da[r, c] += total
        else:
            first = (task - of_a) * COLUMNS
            for c in range(first, min(first + COLUMNS, n_out)):
                for r in range(db.shape[1]):
                    total = np.float32(0.0)
                    for group in range(n_groups):
                        total += sums_b[group, r, c]
                    db[c, r] += total


_COUNTER = np.zeros(1, np.int64)


def sum_floats(n: int, rank: int, width: int) -> int:
    """Return how many floats the groups' sums occupy if n_in + n_out is at most `width`."""
    return n_groups(n) * packed_rows(rank) * width


def n_groups(n: int) -> int:
    """Return the number of groups for `n` tokens."""
    return max(1, min(MOST_GROUPS, n // LEAST, n_panels(n)))


@in_turn
def pack_with_gradients(
    dy: np.ndarray,
    memory: np.ndarray,
    b: np.ndarray,
    *,
    scale: float,
    dh_memory: np.ndarray,
    x: np.ndarray,
    hp: np.ndarray,
    da: np.ndarray,
    db: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pack dy `[N, n_out]` into `memory`, and add dhᵀ x to da `[R, n_in]` and dyᵀ h to db.

    b and db are `[n_out, R]`, x is `[N, n_in]`, and hp is h packed `[P, R6, PANEL]`. Returns the
    packed dy and the packed dh, which is stored in `dh_memory`.
    """
    gp = panels_of(dy, memory)
    (n, n_out), rank, high = dy.shape, b.shape[1], packed_rows(b.shape[1])
    check_array("pair gradients", "b", b, (n_out, rank))
    check_array("pair gradients", "x", x, (n, x.shape[1]))
    check_outer(hp, dy, rank)
    if hp.shape[1] != high:
        raise ValueError(f"pair gradients: h has {hp.shape[1]} rows, expected {high}")
    check_output("pair gradients", "da", da, (rank, x.shape[1]))
    check_output("pair gradients", "db", db, (n_out, rank))
    if dh_memory.dtype != np.float32 or dh_memory.size < len(gp) * high * PANEL:
        raise ValueError(
            f"a buffer of {dh_memory.size} elements is too small for dh if dy has shape {dy.shape}"
        )
    dhp = dh_memory.reshape(-1)[: len(gp) * high * PANEL].reshape(len(gp), high, PANEL)
    if n == 0:
        return gp, dhp
    rows = reused("rows", high, n_out)
    np.multiply(b.T, np.float32(scale), out=rows[:rank])
    rows[rank:] = 0
    groups = n_groups(n)
    sums_a = reused("sums_a", groups, high, x.shape[1])
    sums_b = reused("sums_b", groups, high, n_out)
    _groups(
        readonly(dy), n, gp, readonly(rows), dhp, readonly(x), readonly(hp), sums_a, sums_b,
        get_num_threads(), _COUNTER,
    )  # fmt: skip
    _add_groups(sums_a, sums_b, da, db)
    return gp, dhp
