"""Shapes of the arrays for per-block embeddings (`nbllama.model.per_layer`)."""

from __future__ import annotations

from nbllama.arch import Hparams

Shapes = dict[str, tuple[int, ...]]


def kept_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that a block saves."""
    if not hp.n_per_layer:
        return {}
    return {
        "per_layer_x": (n, hp.n_embd),
        "per_layer_gate": (n, hp.n_per_layer),
        "per_layer_out": (n, hp.n_embd),
        "rstd_per_layer": (n,),
    }


def forward_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that all blocks share in the forward pass."""
    size = hp.n_per_layer
    if not size:
        return {}
    rows = {"per_layer": (n, hp.n_layer * size), "per_layer_act": (n, size)}
    return rows | {"per_layer_raw": (n, size), "per_layer_rstd": (n,)}


def backward_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that all blocks share in the backward pass."""
    return {"per_layer_dact": (n, hp.n_per_layer)} if hp.n_per_layer else {}
