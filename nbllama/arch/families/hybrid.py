"""Rows for models in which only some blocks have attention."""

from __future__ import annotations

from nbllama.arch.experts import ExpertsRow
from nbllama.arch.row import ArchRow, TensorRow, Window
from nbllama.arch.tensors import (
    ATTENTION,
    ENDS,
    FEED_FORWARD,
    HF_EXPERTS,
    HF_MODULES,
    QK_NORMS,
    ROUTED,
    ROUTER_BIAS,
    SHARED_WEIGHT,
)


def _of(mixer: str, rows: tuple[TensorRow, ...]) -> tuple[TensorRow, ...]:
    """Restrict these tensors, except the norm before the mixer, to blocks of kind `mixer`."""
    return tuple(r if r.name == "attn_norm.weight" else r._replace(mixer=mixer) for r in rows)


_SHORT_CONV = (
    TensorRow("shortconv.conv.weight", ("n_embd", "conv_taps")),
    TensorRow("shortconv.in_proj.weight", ("n_conv_in", "n_embd")),
    TensorRow("shortconv.out_proj.weight", ("n_embd", "n_embd")),
)
_DELTA_NET = (
    TensorRow("attn_qkv.weight", ("delta_qkv", "n_embd")),
    TensorRow("attn_gate.weight", ("delta_values", "n_embd")),
    TensorRow("ssm_conv1d.weight", ("delta_qkv", "delta_taps")),
    TensorRow("ssm_dt.bias", ("delta_heads",)),
    TensorRow("ssm_a", ("delta_heads",)),
    TensorRow("ssm_alpha.weight", ("delta_heads", "n_embd")),
    TensorRow("ssm_beta.weight", ("delta_heads", "n_embd")),
    TensorRow("ssm_norm.weight", ("delta_size",)),
    TensorRow("ssm_out.weight", ("n_embd", "delta_values")),
)
# The query matrix includes the gates of the attention output. The norm before feed-forward has the
# name that other models use for a norm after attention.
_QWEN35 = tuple(
    row._replace(shape=("n_q_gate", "n_embd")) if row.name == "attn_q.weight" else row
    for row in _of("attention", ATTENTION + QK_NORMS)
)
_QWEN35_FEED_FORWARD = tuple(
    row._replace(name="post_attention_norm.weight") if row.name == "ffn_norm.weight" else row
    for row in FEED_FORWARD
)

_LFM2_ENDS = (
    TensorRow("token_embd.weight", ("n_vocab", "n_embd")),
    TensorRow("token_embd_norm.weight", ("n_embd",)),
    TensorRow("output.weight", ("n_vocab", "n_embd"), False),
)
_LFM2 = _of("attention", ATTENTION + QK_NORMS) + _of("conv", _SHORT_CONV) + FEED_FORWARD
_LFM2_MODULES = {
    **HF_MODULES,
    "attn_output": "self_attn.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}
_DELTA_MODULES = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_out": "linear_attn.out_proj",
}

ROWS = (
    ArchRow(
        "lfm2",
        _LFM2_ENDS,
        _LFM2,
        mixer="conv",
        output_norm="token_embd_norm",
        rope_pairing="halves",
        window=Window(0, 1 << 20, None, base_key=False),
        hf_modules=_LFM2_MODULES,
        checked=("350M to 2.6B", "with a window"),
    ),
    ArchRow(
        "qwen35",
        ENDS,
        _QWEN35 + _of("delta", _DELTA_NET) + _QWEN35_FEED_FORWARD,
        mixer="delta",
        attn_gate=True,
        ffn_norm="post_attention_norm",
        rope_pairing="halves",
        partial_rope=True,
        next_blocks=True,
        hf_modules=HF_MODULES | _DELTA_MODULES,
        checked=("0.8B and 2B", "4B to 27B (heads share keys)", "with extra prediction blocks"),
    ),
    ArchRow(
        "lfm2moe",
        _LFM2_ENDS,
        _LFM2,
        mixer="conv",
        output_norm="token_embd_norm",
        rope_pairing="halves",
        experts=ExpertsRow(
            "sigmoid",
            normed=True,
            gating_keys=True,
            lead_key=True,
            tensors=(*ROUTED, ROUTER_BIAS),
        ),
        hf_modules=_LFM2_MODULES,
        checked=("8B-A1B",),
    ),
    ArchRow(
        "qwen35moe",
        ENDS,
        _QWEN35 + _of("delta", _DELTA_NET) + _QWEN35_FEED_FORWARD,
        mixer="delta",
        attn_gate=True,
        ffn_norm="post_attention_norm",
        rope_pairing="halves",
        partial_rope=True,
        next_blocks=True,
        experts=ExpertsRow("softmax", normed=True, shared="key", tensors=(*ROUTED, SHARED_WEIGHT)),
        hf_modules=HF_EXPERTS | _DELTA_MODULES,
        checked=("35B-A3B",),
    ),
)
