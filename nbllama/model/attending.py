"""Attention for batches whose samples can share prefixes (`nbllama.data.shared`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.data.batch import Batch
from nbllama.ops.attention.attention import attention
from nbllama.ops.attention.grad import attention_grad
from nbllama.ops.attention.tree import attention_tree, attention_tree_grad


def attend(
    batch: Batch, q: np.ndarray, k: np.ndarray, v: np.ndarray, *, k_offsets: np.ndarray, **how: Any
) -> None:
    """Compute the attention of all sequences; `how` contains the other arguments of `attention`.

    q is `[N, H, D]`, and k and v are `[Nk, G, D]`. `k_offsets` `[S+1]` are the offsets of the keys;
    they are ignored if the batch has a tree.
    """
    tree, starts = batch.tree, batch.seq_offsets
    if tree is None:
        attention(q, k, v, q_offsets=starts, k_offsets=k_offsets, **how)
    else:
        path_offsets = tree.k_offsets
        attention_tree(q, k, v, q_offsets=starts, k_offsets=path_offsets, paths=tree.paths, **how)


def attend_grad(
    batch: Batch, do: np.ndarray, *, q: np.ndarray, k: np.ndarray, v: np.ndarray, **how: Any
) -> None:
    """Compute the gradients of `attend` for a batch without cached keys.

    do `[N, H, D]` is the gradient of the attention output. `how` contains the other arguments of
    `attention_grad`.
    """
    tree, starts = batch.tree, batch.seq_offsets
    if tree is None:
        attention_grad(do, q, k, v, offsets=starts, **how)
    else:
        attention_tree_grad(
            do, q, k, v, q_offsets=starts, k_offsets=tree.k_offsets, paths=tree.paths,
            order=tree.order, starts=tree.starts, **how,
        )  # fmt: skip
