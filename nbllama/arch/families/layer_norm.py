"""Rows for models with LayerNorm, some of which run attention and feed-forward in parallel."""

from __future__ import annotations

from nbllama.arch.row import ArchRow, TensorRow, Window
from nbllama.arch.tensors import (
    BIASES,
    BLOCK,
    ENDS,
    HF_MODULES,
    HF_UNGATED,
    NORM_BIASES,
    OUTPUT_NORM_BIAS,
    QKV_BIASES,
    TIED,
    UNGATED,
    UNTIED,
    without,
)

_SIDE_BY_SIDE = without(BLOCK, "ffn_norm")
_UNGATED_BIASES = tuple(row for row in BIASES if row.name != "ffn_gate.bias")

ROWS = (
    ArchRow(
        "nemotron",
        (*UNTIED, OUTPUT_NORM_BIAS),
        UNGATED + NORM_BIASES + _UNGATED_BIASES,
        norm="layer",
        rope_pairing="halves",
        partial_rope=True,
        gated=False,
        activation="relu2",
        hf_modules=HF_UNGATED,
        checked=("Minitron 4B and 8B",),
    ),
    ArchRow(
        "starcoder2",
        (*ENDS, OUTPUT_NORM_BIAS),
        UNGATED + NORM_BIASES + tuple(row._replace(required=True) for row in _UNGATED_BIASES),
        norm="layer",
        rope_pairing="halves",
        gated=False,
        activation="gelu",
        hf_modules=HF_UNGATED | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        checked=("3B to 15B",),
    ),
    ArchRow(
        "stablelm",
        (*UNTIED, OUTPUT_NORM_BIAS),
        BLOCK + NORM_BIASES + QKV_BIASES,
        norm="layer",
        rope_pairing="halves",
        partial_rope=True,
        hf_modules=HF_MODULES,
        checked=("3B (partial RoPE)", "StableLM 2 1.6B (biases)"),
    ),
    ArchRow(
        "phi2",
        (*UNTIED, OUTPUT_NORM_BIAS, TensorRow("output.bias", ("n_vocab",))),
        without(UNGATED, "ffn_norm") + NORM_BIASES[:1] + _UNGATED_BIASES,
        norm="layer",
        ffn_norm="attn_norm",
        rope_pairing="halves",
        partial_rope=True,
        gated=False,
        activation="gelu",
        hf_modules=HF_UNGATED
        | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        checked=("1, 1.5 and 2",),
    ),
    ArchRow(
        "command-r",
        TIED,
        _SIDE_BY_SIDE + QKV_BIASES,
        norm="layer",
        ffn_norm="attn_norm",
        logit_factor=True,
        scale_keys=("logit",),
        hf_modules=HF_MODULES,
        hf_turned=False,
        checked=("35B", "without a logit scale"),
    ),
    ArchRow(
        "cohere2",
        TIED,
        _SIDE_BY_SIDE + QKV_BIASES,
        norm="layer",
        ffn_norm="attn_norm",
        rope_in_windows=True,
        window=Window(None, 4, None, base_key=False),
        logit_factor=True,
        scale_keys=("logit",),
        hf_modules=HF_MODULES,
        hf_turned=False,
        checked=("7B and 111B",),
    ),
)
