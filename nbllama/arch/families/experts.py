"""Rows for mixture-of-experts models, except Mixtral, whose architecture is `llama`."""

from __future__ import annotations

from nbllama.arch.experts import ExpertsRow
from nbllama.arch.row import SCALE_KEYS, ArchRow, TensorRow, Window
from nbllama.arch.tensors import (
    BIASES,
    BLOCK,
    ENDS,
    FACTORS,
    HF_ATTENTION,
    HF_EXPERTS,
    HF_MODULES,
    QK_NORMS,
    QK_NORMS_WHOLE,
    QKV_BIASES,
    ROUTED,
    ROUTED_BIASES,
    ROUTER_BIAS,
    SHARED_WEIGHT,
    UNTIED,
)

FFN_NORM = "ffn_norm.weight"


def _hf_shared(folder: str) -> dict[str, str]:
    """Return the Hugging Face module names for a shared expert with the module path `folder`."""
    parts = ("gate", "down", "up")
    return {f"ffn_{part}_shexp": f"mlp.{folder}.{part}_proj" for part in parts}


ROWS = (
    ArchRow(
        "qwen3moe",
        ENDS,
        BLOCK + QK_NORMS,
        rope_pairing="halves",
        experts=ExpertsRow("softmax", normed=True),
        hf_modules=HF_EXPERTS,
        checked=("30B-A3B and 235B-A22B",),
    ),
    ArchRow(
        "qwen2moe",
        UNTIED,
        BLOCK + QKV_BIASES,
        rope_pairing="halves",
        experts=ExpertsRow("softmax", shared="key", tensors=(*ROUTED, SHARED_WEIGHT)),
        hf_modules=HF_EXPERTS | _hf_shared("shared_expert"),
        checked=("1.5-MoE A2.7B and 57B-A14B",),
    ),
    ArchRow(
        "olmoe",
        UNTIED,
        BLOCK + QK_NORMS_WHOLE,
        rope_pairing="halves",
        experts=ExpertsRow("softmax", own_width=False),
        hf_modules=HF_EXPERTS,
        checked=("1B-7B",),
    ),
    ArchRow(
        "granitemoe",
        (*ENDS, FACTORS),
        BLOCK + BIASES,
        scale_keys=tuple(SCALE_KEYS),
        experts=ExpertsRow("softmax", normed=True, own_width=False, shared="key"),
        hf_modules=HF_ATTENTION,
        checked=("1B-A400M and 3B-A800M", "with a shared expert"),
    ),
    ArchRow(
        "ernie4_5-moe",
        ENDS,
        BLOCK + QKV_BIASES,
        experts=ExpertsRow(
            "softmax",
            normed=True,
            shared="key",
            lead_key=True,
            step_key=True,
            tensors=(*ROUTED, ROUTER_BIAS._replace(required=False)),
        ),
        hf_modules=HF_MODULES | HF_EXPERTS | _hf_shared("shared_experts"),
        hf_turned=False,
        checked=("21B-A3B and 300B-A47B",),
    ),
    ArchRow(
        "glm4moe",
        ENDS,
        tuple(
            row._replace(name="post_attention_norm.weight") if row.name == FFN_NORM else row
            for row in BLOCK
        )
        + QKV_BIASES
        + tuple(row._replace(required=False) for row in QK_NORMS),
        ffn_norm="post_attention_norm",
        rope_pairing="halves",
        partial_rope=True,
        sections=False,
        experts=ExpertsRow(
            "sigmoid",
            gating_keys=True,
            shared="count",
            lead_key=True,
            tensors=(*ROUTED, ROUTER_BIAS),
        ),
        next_blocks=True,
        hf_modules=HF_MODULES | HF_EXPERTS | _hf_shared("shared_experts"),
        checked=("4.5 Air (MTP block ignored)", "4.5 and 4.6, 355B (per-head norms)"),
    ),
    ArchRow(
        "gpt-oss",
        UNTIED,
        tuple(
            row._replace(name="post_attention_norm.weight") if row.name == FFN_NORM else row
            for row in BLOCK
        )
        + tuple(row._replace(required=True) for row in BIASES[:4])
        + (TensorRow("attn_sinks.weight", ("n_head",)),),
        ffn_norm="post_attention_norm",
        rope_pairing="halves",
        window=Window(None, 2, None),
        experts=ExpertsRow("chosen", kind="clamped", tensors=(*ROUTED, *ROUTED_BIASES)),
        hf_modules=HF_ATTENTION,
        checked=("20B and 120B",),
    ),
)
