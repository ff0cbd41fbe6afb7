"""Gemma's rows: scaled embeddings, GELU, soft-caps, windows."""

from __future__ import annotations

import math
from functools import partial

from nbllama.arch.row import ArchRow, Scales, Sizes, Window, score_scale
from nbllama.arch.tensors import BLOCK, ENDS, HF_MODULES, POST_NORMS, QK_NORMS, TIED


def _gemma_scales(largest: int, sizes: Sizes) -> Scales:
    """Scale scores by the head size, but by n_embd / n_head in the model of `largest` layers."""
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
        checked=("2B and 9B", "without its keys", "27B"),
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
)
