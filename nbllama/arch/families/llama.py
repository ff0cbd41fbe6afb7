"""Rows for Llama and similar models, which differ in biases, norms of q and k, and scales."""

from __future__ import annotations

import math

from nbllama.arch.experts import ExpertsRow
from nbllama.arch.row import SCALE_KEYS, ArchRow, Scales, Sizes
from nbllama.arch.tensors import (
    BIASES,
    BLOCK,
    ENDS,
    FACTORS,
    HF_MODULES,
    HF_UNGATED,
    QK_NORMS,
    QKV_BIASES,
    UNGATED,
    UNTIED,
)


def _minicpm_scales(sizes: Sizes) -> Scales:
    """Return the scales of the 2B model, which llama.cpp uses for files without the keys."""
    return Scales(12.0, 1.4 / math.sqrt(sizes.n_layer), 256 / sizes.n_embd)


_MIXTRAL = {
    f"ffn_{part}_exps": f"block_sparse_moe.experts.{{e}}.{module}"
    for part, module in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
}

# The norm before feed-forward has the name that other models use for a norm after attention.
_SEED_OSS = tuple(
    row._replace(name="post_attention_norm.weight") if row.name == "ffn_norm.weight" else row
    for row in BLOCK + QKV_BIASES
)

ROWS = (
    ArchRow(
        "llama",
        (*ENDS, FACTORS),
        BLOCK + BIASES,
        experts=ExpertsRow("softmax", normed=True, own_width=False, optional=True),
        hf_modules=HF_MODULES | _MIXTRAL,
        checked=(
            "7B to 30B",
            "70B (64 heads, 8 KV heads)",
            "Mistral (window ignored)",
            "Chinese-LLaMA-2-16k",
            "Llama 3 1B",
            "Yi",
            "Mixtral (experts)",
        ),
    ),
    ArchRow(
        "baichuan",
        ENDS,
        BLOCK,
        alibi_by_depth={32: 0.0, 40: 8.0},
        same_as="llama",
        checked=("7B (RoPE)", "13B (ALiBi)"),
    ),
    ArchRow("internlm2", ENDS, BLOCK, checked=("all sizes",)),
    ArchRow(
        "minicpm",
        (*ENDS, FACTORS),
        BLOCK + BIASES,
        scales=_minicpm_scales,
        scale_keys=("embedding", "residual", "logit"),
        hf_modules=HF_MODULES,
        checked=("with its scales in the file", "without them"),
    ),
    ArchRow(
        "deepseek",
        ENDS,
        BLOCK,
        dense_lead_key=True,
        hf_modules=HF_MODULES,
        checked=("dense",),
    ),
    ArchRow(
        "granite",
        (*ENDS, FACTORS),
        BLOCK + BIASES,
        scale_keys=tuple(SCALE_KEYS),
        fixed_keys={"rope.scaling.finetuned": True},  # if false, the model has no positions
        hf_modules=HF_MODULES,
        checked=("dense", "without the optional keys"),
    ),
    ArchRow(
        "smollm3",
        ENDS,
        BLOCK + QKV_BIASES,
        rope_period=4,
        hf_modules=HF_MODULES,
        checked=("3B (no RoPE in every fourth block)",),
    ),
    ArchRow(
        "mistral3",
        (*ENDS, FACTORS),
        BLOCK + BIASES,
        yarn_keys=True,
        temperature=True,
        hf_modules=HF_MODULES,
        checked=("Ministral 3 (YaRN, temperature)", "without them"),
    ),
    ArchRow(
        "ernie4_5",
        ENDS,
        BLOCK + QKV_BIASES,
        hf_modules=HF_MODULES,
        hf_turned=False,
        checked=("0.3B", "with biases"),
    ),
    ArchRow(
        "seed_oss",
        ENDS,
        _SEED_OSS,
        ffn_norm="post_attention_norm",
        rope_pairing="halves",
        hf_modules=HF_MODULES,
        checked=("36B",),
    ),
    ArchRow(
        "hunyuan-dense",
        ENDS,
        BLOCK + QKV_BIASES + QK_NORMS,
        rope_pairing="halves",
        qk_norm_last=True,
        rope_alpha=True,
        idle_experts=1,
        hf_modules=HF_MODULES,
        checked=("0.5B to 7B", "with rope.scaling.alpha"),
    ),
    ArchRow(
        "arcee",
        (*ENDS, FACTORS),
        UNGATED + QKV_BIASES,
        gated=False,
        activation="relu2",
        hf_modules=HF_UNGATED,
        checked=("AFM 4.5B",),
    ),
    ArchRow(
        "apertus",
        (*UNTIED, FACTORS),
        UNGATED + QKV_BIASES + QK_NORMS,
        rope_pairing="halves",
        gated=False,
        activation="xielu",
        hf_modules=HF_UNGATED,
        checked=("8B and 70B",),
    ),
)
