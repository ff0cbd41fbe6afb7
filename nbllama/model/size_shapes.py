"""Shapes of the arrays for models whose blocks differ in size (`nbllama.model.varied`)."""

from __future__ import annotations

import math

import numpy as np

from nbllama.arch import BlockSizes, Hparams

Shapes = dict[str, tuple[int, ...]]

_QUERIES = ("q", "att", "datt", "dq")
_KEYS = ("k", "v", "dk", "dv")
_WIDE = ("gate", "up", "act", "dact")


def head_shapes(hp: Hparams) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of one token's queries and keys (or values) in the largest block."""
    if not hp.blocks:
        return (hp.n_head, hp.head_dim), (hp.n_head_kv, hp.head_dim)
    width = max(b.n_head_kv * b.head_dim for b in hp.blocks)
    return (hp.n_head, max(b.head_dim for b in hp.blocks)), (1, width)


def most_kv_heads(hp: Hparams) -> int:
    """Return the largest number of key heads in any block."""
    return max(b.n_head_kv for b in hp.each_size)


def norm_shapes_of_values(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that the value norm saves for the backward pass.

    The result is empty if the model does not normalise values.
    """
    if not hp.values_normed:
        return {}
    return {"v": (n, *head_shapes(hp)[1]), "rstd_v": (n, most_kv_heads(hp))}


def lent_shapes(hp: Hparams, n: int, *names: str) -> Shapes:
    """Return the shapes of the arrays for keys and values that several blocks share."""
    shapes: Shapes = {}
    for layer in hp.lent:
        of = hp.sizes_at(layer)
        shapes |= {f"{name}_of_{layer}": (n, of.n_head_kv, of.head_dim) for name in names}
    return shapes


def own_shape(name: str, sizes: BlockSizes, n_head: int) -> tuple[int, ...] | None:
    """Return the shape of each token's data in a block's array `name`.

    Returns None if the shape is the same in all blocks.
    """
    if name in _QUERIES:
        return n_head, sizes.head_dim
    if name in _KEYS:
        return sizes.n_head_kv, sizes.head_dim
    return (sizes.n_ff,) if name in _WIDE else None


def fitted(array: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the first elements of an array as `[n, *shape]`."""
    return array.reshape(-1)[: n * math.prod(shape)].reshape(n, *shape)
