"""Allocate key and value caches."""

from __future__ import annotations

import numpy as np

from nbllama.arch import Hparams


def cache_floats(hp: Hparams) -> int:
    """Return how many floats the keys of a token take in all blocks; the values take as many."""
    sizes = map(hp.sizes_at, hp.attention_layers)
    return sum(of.n_head_kv * of.head_dim for of in sizes)


Cache = np.ndarray | list[np.ndarray]


def new_cache(hp: Hparams, shape: tuple[int, ...]) -> Cache:
    """Return uninitialised float32 arrays `[*shape, G, D]`, one for each block with its own keys.

    The last element of `shape` is the number of tokens. If all blocks are the same size, the result
    is one array `[blocks, *shape, G, D]`.
    """
    sizes = [hp.sizes_at(layer) for layer in hp.attention_layers]
    if not hp.blocks:
        return np.empty((len(sizes), *shape, hp.n_head_kv, hp.head_dim), np.float32)
    return [np.empty((*shape, of.n_head_kv, of.head_dim), np.float32) for of in sizes]
