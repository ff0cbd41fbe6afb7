"""Blocks of different sizes, and blocks that use the keys and values of an earlier block.

All arrays are large enough for the largest block (`nbllama.model.activations`). A smaller block
uses the beginning of each array, with its own shape.

Some blocks do not compute keys and values, but use the keys and values of an earlier block,
`kv_from`. The earlier block stores them in separate arrays, not in its set of activations, because
later blocks read them after the set has been reused. Their gradient is the sum over all blocks that
read them: from the last block to the first, each later block adds its part to an array, and the
earlier block adds the sum to its own gradient.
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
    """Compute the values y, including their norm in some models.

    If the block has no matrix for values, the projected keys are used as values.
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
    """Turn dv into the gradient of the projected values.

    If the projected keys are used as values, this gradient is added to dk.
    """
    rows, rstd = _rows(block, block.kept.norms["v"])
    d = dv.reshape(rows.shape)
    rms_norm_grad(d, rows, _ones(block), rstd, dx=d)
    if "v" not in block.pairs:
        dk += dv


def collect(block: BlockParts, dk: np.ndarray, dv: np.ndarray) -> bool:
    """Sum dk and dv over blocks that share keys; return whether this block owns its keys.

    If the block owns its keys, the parts of later blocks are added to dk and dv. Otherwise, dk and
    dv are added to the gradients of the block that owns the keys.
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
