"""Rows for Gemma models, which use scaled embeddings, GELU, soft-capping and sliding windows."""

from __future__ import annotations

import math
from functools import partial

from nbllama.arch.row import ArchRow, Scales, Sizes, Window, score_scale
from nbllama.arch.tensors import (
    BLOCK,
    ENDS,
    HF_MODULES,
    POST_NORMS,
    QK_NORMS,
    ROPE_FACTORS,
    TIED,
    TensorRow,
)

# Gemma 4: per-block token embeddings, and the tensors that use them. Some blocks have no attn_v and
# use the projected keys as values.
_PER_LAYER_ENDS = (
    TensorRow("per_layer_token_embd.weight", ("n_vocab", "n_per_layer_all")),
    TensorRow("per_layer_model_proj.weight", ("n_per_layer_all", "n_embd")),
    TensorRow("per_layer_proj_norm.weight", ("n_per_layer",)),
    TensorRow(ROPE_FACTORS, ("n_rot_half",)),
)
_PER_LAYER = (
    TensorRow("inp_gate.weight", ("n_per_layer", "n_embd"), mixer="per_layer"),
    TensorRow("proj.weight", ("n_embd", "n_per_layer"), mixer="per_layer"),
    TensorRow("post_norm.weight", ("n_embd",), mixer="per_layer"),
    TensorRow("layer_output_scale.weight", ("one",), False),
)


def _gemma_scales(largest: int, sizes: Sizes) -> Scales:
    """Return the scales; the factor for attention scores is 1 / sqrt(head size).

    In the model with `largest` layers, it is 1 / sqrt(n_embd / n_head) instead.
    """
    width = sizes.n_embd // sizes.n_head
    wide = sizes.n_layer == largest
    return Scales(math.sqrt(sizes.n_embd), attention=score_scale(width) if wide else None)


ROWS = (
    ArchRow(
        "gemma",
        TIED,
        BLOCK,
        rope_pairing="halves",
        activation="gelu",
        scales=lambda sizes: Scales(math.sqrt(sizes.n_embd)),
        hf_modules=HF_MODULES,
        checked=("2B and 7B",),
    ),
    ArchRow(
        "gemma2",
        TIED,
        BLOCK + POST_NORMS,
        rope_pairing="halves",
        activation="gelu",
        scales=partial(_gemma_scales, 46),
        attn_softcap=50.0,
        logit_softcap=30.0,
        window=Window(4096, 2, None),
        hf_modules=HF_MODULES,
        checked=("2B and 9B", "without the optional keys", "27B"),
    ),
    ArchRow(
        "gemma3",
        ENDS,
        BLOCK + QK_NORMS + POST_NORMS,
        rope_pairing="halves",
        activation="gelu",
        scales=partial(_gemma_scales, 62),
        logit_softcap=0.0,
        window=Window(0, 6, 10000.0),
        hf_modules=HF_MODULES,
        checked=("270M and 1B", "4B and 12B, text", "without a window", "27B, text"),
    ),
    ArchRow(
        "gemma4",
        ENDS + _PER_LAYER_ENDS,
        tuple(r._replace(required=r.name != "attn_v.weight") for r in BLOCK + QK_NORMS + POST_NORMS)
        + _PER_LAYER,
        rope_pairing="halves",
        activation="gelu",
        scales=lambda sizes: Scales(math.sqrt(sizes.n_embd), attention=1.0),
        logit_softcap=30.0,
        window=Window(None, 6, 10000.0),
        varied=True,
        values_normed=True,
        per_layer=True,
        hf_modules=HF_MODULES
        | {"inp_gate": "per_layer_input_gate", "proj": "per_layer_projection"},
        checked=("E2B and E4B", "31B"),
    ),
)
