"""Tensors that several architectures share, and the Hugging Face names of the matrices."""

from __future__ import annotations

from typing import NamedTuple


class TensorRow(NamedTuple):
    """A tensor of an architecture, and whether the tensor is required.

    `name` is the GGUF name, without `blk.N.` for block tensors. `shape` lists the dimensions
    by name, such as "n_embd". `mixer` is the kind of block that has the tensor
    (`Hparams.mixer_at`), "per_layer" for models with per-block embeddings, or "" for all blocks.
    """

    name: str
    shape: tuple[str, ...]
    required: bool = True
    mixer: str = ""


def without(rows: tuple[TensorRow, ...], *names: str) -> tuple[TensorRow, ...]:
    """Return `rows` except for those with these names (given without `.weight`)."""
    return tuple(row for row in rows if row.name.removesuffix(".weight") not in names)


ENDS = (
    TensorRow("token_embd.weight", ("n_vocab", "n_embd")),
    TensorRow("output_norm.weight", ("n_embd",)),
    TensorRow("output.weight", ("n_vocab", "n_embd"), False),
)
TIED = ENDS[:2]
UNTIED = (*TIED, TensorRow("output.weight", ("n_vocab", "n_embd")))
ATTENTION = (
    TensorRow("attn_norm.weight", ("n_embd",)),
    TensorRow("attn_q.weight", ("n_q", "n_embd")),
    TensorRow("attn_k.weight", ("n_kv", "n_embd")),
    TensorRow("attn_v.weight", ("n_kv", "n_embd")),
    TensorRow("attn_output.weight", ("n_embd", "n_q")),
)
FEED_FORWARD = (
    TensorRow("ffn_norm.weight", ("n_embd",)),
    TensorRow("ffn_gate.weight", ("n_ff", "n_embd")),
    TensorRow("ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("ffn_up.weight", ("n_ff", "n_embd")),
)
BLOCK = ATTENTION + FEED_FORWARD
UNGATED = without(BLOCK, "ffn_gate")
QKV_BIASES = (
    TensorRow("attn_q.bias", ("n_q",), False),
    TensorRow("attn_k.bias", ("n_kv",), False),
    TensorRow("attn_v.bias", ("n_kv",), False),
)
BIASES = (
    *QKV_BIASES,
    TensorRow("attn_output.bias", ("n_embd",), False),
    TensorRow("ffn_gate.bias", ("n_ff",), False),
    TensorRow("ffn_down.bias", ("n_embd",), False),
    TensorRow("ffn_up.bias", ("n_ff",), False),
)
QK_NORMS = (
    TensorRow("attn_q_norm.weight", ("head_dim",)),
    TensorRow("attn_k_norm.weight", ("head_dim",)),
)
NORM_BIASES = (TensorRow("attn_norm.bias", ("n_embd",)), TensorRow("ffn_norm.bias", ("n_embd",)))
OUTPUT_NORM_BIAS = TensorRow("output_norm.bias", ("n_embd",))
QK_NORMS_WHOLE = (
    TensorRow("attn_q_norm.weight", ("n_q",)),
    TensorRow("attn_k_norm.weight", ("n_kv",)),
)
POST_NORMS = (
    TensorRow("post_attention_norm.weight", ("n_embd",)),
    TensorRow("post_ffw_norm.weight", ("n_embd",)),
)
# Fused matrices: gate and up, or queries, keys and values.
FUSED_FEED_FORWARD = (
    TensorRow("ffn_norm.weight", ("n_embd",)),
    TensorRow("ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("ffn_up.weight", ("n_gate_up", "n_embd")),
)
FUSED = (
    TensorRow("attn_norm.weight", ("n_embd",)),
    TensorRow("attn_qkv.weight", ("n_qkv", "n_embd")),
    TensorRow("attn_qkv.bias", ("n_qkv",), False),
    TensorRow("attn_output.weight", ("n_embd", "n_q")),
    *FUSED_FEED_FORWARD,
)
# In a block with experts: the router, the matrices of all experts, and the shared expert.
DENSE_FEED_FORWARD = ("ffn_gate", "ffn_down", "ffn_up")
ROUTED = (
    TensorRow("ffn_gate_inp.weight", ("n_expert", "n_embd")),
    TensorRow("ffn_gate_exps.weight", ("n_expert", "n_ff_exp", "n_embd")),
    TensorRow("ffn_down_exps.weight", ("n_expert", "n_embd", "n_ff_exp")),
    TensorRow("ffn_up_exps.weight", ("n_expert", "n_ff_exp", "n_embd")),
)
SHARED = (
    TensorRow("ffn_gate_shexp.weight", ("n_ff_shexp", "n_embd")),
    TensorRow("ffn_down_shexp.weight", ("n_embd", "n_ff_shexp")),
    TensorRow("ffn_up_shexp.weight", ("n_ff_shexp", "n_embd")),
)
ROUTED_BIASES = (
    TensorRow("ffn_gate_inp.bias", ("n_expert",)),
    TensorRow("ffn_gate_exps.bias", ("n_expert", "n_ff_exp")),
    TensorRow("ffn_down_exps.bias", ("n_expert", "n_embd")),
    TensorRow("ffn_up_exps.bias", ("n_expert", "n_ff_exp")),
)
SHARED_WEIGHT = TensorRow("ffn_gate_inp_shexp.weight", ("n_embd",))
ROUTER_BIAS = TensorRow("exp_probs_b.bias", ("n_expert",))
ROPE_FACTORS = "rope_freqs.weight"
FACTORS = TensorRow(ROPE_FACTORS, ("n_rot_half",), False)

HF_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
}
HF_ATTENTION = {k: module for k, module in HF_MODULES.items() if k.startswith("attn")}
# {e} is the index of an expert; every expert has its own module.
HF_EXPERTS = HF_ATTENTION | {
    "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_down_exps": "mlp.experts.{e}.down_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj",
}
HF_UNGATED = {tensor: module for tensor, module in HF_MODULES.items() if tensor != "ffn_gate"}
HF_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.gate_up_proj",
}
HF_FUSED_UP = HF_UNGATED | {"ffn_up": "mlp.gate_up_proj"}
