"""Blocks of different sizes, and blocks that use the keys and values of an earlier block.

All arrays have the size of the largest block (`nbllama.model.activations`). A smaller block uses
the beginning of each array, with its own shape.

Some blocks have no keys and values: their queries read those of an earlier block, `kv_from`. The
keys and values of such an earlier block are not in its own set of activations, but in separate
arrays, since the later blocks need them when the set is used again. Their gradient is the sum over
all blocks that read them: from the last to the first, each adds its part to one array, and the
earlier block adds that sum to its own gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nbllama.arch import BlockSizes, Hparams
from nbllama.ops.rms_norm import rms_norm, rms_norm_grad

if TYPE_CHECKING:
    from nbllama.model.block import Block
    from nbllama.model.parts import BlockParts
    from nbllama.ops.linear.linear import Input

Shapes = dict[str, tuple[int, ...]]

_QUERIES = ("q", "att", "datt", "dq")
_KEYS = ("k", "v", "dk", "dv")
_WIDE = ("gate", "up", "act", "dact")


def head_shapes(hp: Hparams) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of a token's queries, and of its keys (or values), in the largest block."""
    if not hp.blocks:
        return (hp.n_head, hp.head_dim), (hp.n_head_kv, hp.head_dim)
    width = max(b.n_head_kv * b.head_dim for b in hp.blocks)
    return (hp.n_head, max(b.head_dim for b in hp.blocks)), (1, width)


def most_kv_heads(hp: Hparams) -> int:
    """Return the largest number of heads of keys."""
    return max(b.n_head_kv for b in hp.each_size)


def norm_shapes_of_values(hp: Hparams, n: int) -> Shapes:
    """Return the shapes that the norm of the values saves, if there is one."""
    if not hp.values_normed:
        return {}
    return {"v": (n, *head_shapes(hp)[1]), "rstd_v": (n, most_kv_heads(hp))}


def lent_shapes(hp: Hparams, n: int, *names: str) -> Shapes:
    """Return the shapes of the arrays for keys and values that several blocks use."""
    shapes: Shapes = {}
    for layer in hp.lent:
        of = hp.sizes_at(layer)
        shapes |= {f"{name}_of_{layer}": (n, of.n_head_kv, of.head_dim) for name in names}
    return shapes


def own_shape(name: str, sizes: BlockSizes, n_head: int) -> tuple[int, ...] | None:
    """Return a token's shape in a block's array; None if the shape is the same in all blocks."""
    if name in _QUERIES:
        return n_head, sizes.head_dim
    if name in _KEYS:
        return sizes.n_head_kv, sizes.head_dim
    return (sizes.n_ff,) if name in _WIDE else None


def fitted(array: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the beginning of an array as `[n, *shape]`."""
    return array.reshape(-1)[: n * math.prod(shape)].reshape(n, *shape)


def fit(block: BlockParts) -> None:
    """Reshape the arrays of `block.kept` for the block; use the shared arrays for lent keys."""
    kept, n, sizes = block.kept, block.n, block.sizes
    for name in ("q", "att", "k", "v", "gate", "up"):
        shape = own_shape(name, sizes, block.hp.n_head)
        assert shape is not None
        setattr(kept, name, fitted(getattr(kept, name), n, shape))
    for name in ("q", "k", "v"):
        shape = own_shape(name, sizes, block.hp.n_head)
        if shape is not None and name in kept.norms:
            kept.norms[name] = fitted(kept.norms[name], n, shape)
    if sizes.kv_from in block.hp.lent:
        kept.k = block.shared(f"k_of_{sizes.kv_from}")
        kept.v = block.shared(f"v_of_{sizes.kv_from}")


# The values, and the gradients of keys and values


def values(block: Block, x: Input, y: np.ndarray) -> None:
    """Compute the values y, in some models with a norm.

    Without a matrix for values, the values are the projected keys.
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


def values_grad(block: Block, dv: np.ndarray, dk: np.ndarray) -> None:
    """Turn dv into the gradient of the projection's output; without one, add it to dk."""
    rows, rstd = _rows(block, block.kept.norms["v"])
    d = dv.reshape(rows.shape)
    rms_norm_grad(d, rows, _ones(block), rstd, dx=d)
    if "v" not in block.pairs:
        dk += dv


def collect(block: Block, dk: np.ndarray, dv: np.ndarray) -> bool:
    """Return whether the block has its own keys; if so, add the later blocks' parts to dk, dv.

    Otherwise, add dk and dv to the gradients of the block that owns the keys.
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
        if block.layer == last:  # the first one in the backward pass
            sums[:] = mine
        else:
            sums += mine
    return False


def _rows(block: Block, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = x.reshape(-1, block.sizes.head_dim)
    return rows, block.kept.norms["rstd_v"].reshape(-1)[: len(rows)]


def _ones(block: Block) -> np.ndarray:
    return np.ones(block.sizes.head_dim, np.float32)
