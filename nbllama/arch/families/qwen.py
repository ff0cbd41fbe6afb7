"""Rows for Qwen, including the text part of vision models."""

from __future__ import annotations

from nbllama.arch.row import ArchRow
from nbllama.arch.tensors import BLOCK, ENDS, HF_MODULES, QK_NORMS, QKV_BIASES

ROWS = (
    ArchRow(
        "qwen2",
        ENDS,
        BLOCK + QKV_BIASES,
        rope_pairing="halves",
        hf_modules=HF_MODULES,
        checked=("7B", "0.5B (tied)"),
    ),
    ArchRow(
        "qwen3",
        ENDS,
        BLOCK + QK_NORMS,
        rope_pairing="halves",
        hf_modules=HF_MODULES,
        checked=("all dense sizes",),
    ),
    # A text token has a single position, so all sections of a head are rotated by the same
    # position, as in qwen2 and qwen3.
    ArchRow(
        "qwen2vl",
        ENDS,
        BLOCK + QKV_BIASES,
        rope_pairing="halves",
        hf_modules=HF_MODULES,
        no_eps=True,
        checked=("2B to 72B, text",),
    ),
    ArchRow(
        "qwen3vl",
        ENDS,
        BLOCK + QK_NORMS,
        rope_pairing="halves",
        hf_modules=HF_MODULES,
        checked=("2B to 32B, text",),
    ),
)
