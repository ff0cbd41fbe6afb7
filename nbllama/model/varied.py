"""Blocks of different sizes, and blocks that use the keys and values of an earlier block.

All arrays are large enough for the largest block (`nbllama.model.activations`). A smaller block
uses the first part of each array, with its own shape.

Some blocks do not compute keys and values, but use those of an earlier block, `kv_from`. The keys
and values of the earlier block are stored in separate arrays, not in its set of activations,
because later blocks read them after the set has been reused. The gradient of these keys and values
is the sum over all blocks that read them. In the backward pass, each later block adds its part to
an array, and the earlier block then adds the sum to its own gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nbllama.ops.rms_norm import rms_norm, rms_norm_grad

if TYPE_CHECKING:
    from nbllama.model.parts import BlockParts
    from nbllama.ops.linear.linear import Input

# Values, and the gradients of keys and values


def values(block: BlockParts, x: Input, y: np.ndarray) -> None:
    """Compute the values y; in some models, the values are also normalised.

    If the block has no matrix for the values, the projected keys are used as values.
    """
    if not block.hp.values_normed:
        block.project("v", x, y)
        return
    raw = block.kept.norms["v"]
    if "v" in block.pairs:
        block.project("v", x, raw)
    else:
        raw[:] = block.kept.norms["k"]
    rows, rstd = _rows(block, raw)
    rms_norm(rows, _ones(block), block.hp.rms_eps, y=y.reshape(rows.shape), rstd=rstd)


def values_grad(block: BlockParts, dv: np.ndarray, dk: np.ndarray) -> None:
    """Replace dv with the gradient of the projected values.

    If the block has no matrix for the values, also add dv to dk.
    """
    rows, rstd = _rows(block, block.kept.norms["v"])
    d = dv.reshape(rows.shape)
    rms_norm_grad(d, rows, _ones(block), rstd, dx=d)
    if "v" not in block.pairs:
        dk += dv


def collect(block: BlockParts, dk: np.ndarray, dv: np.ndarray) -> bool:
    """Sum the gradients of keys and values; return whether the block has its own keys.

    If so, add the gradients from later blocks to dk and dv. Otherwise, add dk and dv to the
    gradients collected for the block that computes the keys.
    """
    of, hp = block.sizes.kv_from, block.hp
    if of not in hp.lent:
        return True
    total = block.shared(f"dk_of_{of}"), block.shared(f"dv_of_{of}")
    if of == block.layer:
        dk += total[0]
        dv += total[1]
        return True
    last = max(i for i, sizes in enumerate(hp.blocks) if sizes.kv_from == of)
    for sums, mine in zip(total, (dk, dv), strict=True):
        if block.layer == last:  # the backward pass reaches this block first
            sums[:] = mine
        else:
            sums += mine
    return False


def _rows(block: BlockParts, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = x.reshape(-1, block.sizes.head_dim)
    return rows, block.kept.norms["rstd_v"].reshape(-1)[: len(rows)]


def _ones(block: BlockParts) -> np.ndarray:
    return np.ones(block.sizes.head_dim, np.float32)
