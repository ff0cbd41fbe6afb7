"""Rows for models with fused matrices, or with norms after attention and feed-forward."""

from __future__ import annotations

from nbllama.arch.row import ArchRow, Window
from nbllama.arch.tensors import (
    ATTENTION,
    BLOCK,
    ENDS,
    FACTORS,
    FUSED,
    FUSED_FEED_FORWARD,
    HF_FUSED,
    HF_FUSED_UP,
    HF_MODULES,
    POST_NORMS,
    QK_NORMS,
    QK_NORMS_WHOLE,
    QKV_BIASES,
    UNTIED,
    without,
)

_NO_NORMS_BEFORE = without(BLOCK, "attn_norm", "ffn_norm") + POST_NORMS

ROWS = (
    ArchRow(
        "phi3",
        ENDS,
        FUSED,
        rope_pairing="halves",
        partial_rope=True,
        hf_modules=HF_FUSED,
        checked=("mini", "medium (GQA)", "Phi-4-mini (partial RoPE)"),
    ),
    ArchRow(
        "glm4",
        ENDS,
        ATTENTION + QKV_BIASES + POST_NORMS + FUSED_FEED_FORWARD,
        partial_rope=True,
        sections=False,
        hf_modules=HF_FUSED_UP,
        hf_turned=False,
        checked=("GLM-4-0414 9B and 32B",),
    ),
    ArchRow(
        "olmo2",
        UNTIED,
        _NO_NORMS_BEFORE + QK_NORMS_WHOLE + QKV_BIASES,
        attn_norm="",
        ffn_norm="",
        rope_pairing="halves",
        window=Window(0, 4, None, base_key=False, yarn=False),
        hf_modules=HF_MODULES,
        checked=("OLMo 2", "OLMo 3 (windows)", "OLMo 3 with YaRN"),
    ),
    ArchRow(
        "exaone4",
        (*ENDS, FACTORS),
        _NO_NORMS_BEFORE + QK_NORMS + QKV_BIASES,
        attn_norm="",
        ffn_norm="",
        rope_pairing="halves",
        rope_in_windows=True,
        window=Window(4096, 4, None, base_key=False, depths=(64,)),
        hf_modules=HF_MODULES,
        checked=("1.2B", "32B (windows)"),
    ),
)
