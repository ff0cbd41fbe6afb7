"""The rows: what an architecture's name decides. The only module that names one.

The numbers come from the file's keys (`llama.embedding_length`, ...), and what is optional (biases,
a separate output matrix, RoPE factors) from which tensors exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class TensorRow(NamedTuple):
    """One tensor: GGUF name (of a block: without `blk.N.`), shape as names of sizes, required?"""

    name: str
    shape: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class ArchRow:
    """What an architecture's name decides; everything else is read from the file."""

    name: str
    tensors: tuple[TensorRow, ...]
    block: tuple[TensorRow, ...]
    rope_pairing: str = "interleaved"  # or "halves"
    partial_rope: bool = False  # may rope.dimension_count be less than the head size?
    yarn_keys: bool = False  # does llama.cpp read yarn_beta_fast, yarn_beta_slow for it?
    activation: str = "silu"  # or "gelu"
    embed_scale: str = "one"  # or "sqrt_n_embd"
    softcap_keys: bool = False  # attn_logit_softcapping, final_logit_softcapping
    alibi_by_depth: Mapping[int, float] | None = None  # n_layer -> max bias (0: RoPE)


_ENDS = (
    TensorRow("token_embd.weight", ("n_vocab", "n_embd")),
    TensorRow("output_norm.weight", ("n_embd",)),
    TensorRow("output.weight", ("n_vocab", "n_embd"), False),
)
_BLOCK = (
    TensorRow("attn_norm.weight", ("n_embd",)),
    TensorRow("attn_q.weight", ("n_q", "n_embd")),
    TensorRow("attn_k.weight", ("n_kv", "n_embd")),
    TensorRow("attn_v.weight", ("n_kv", "n_embd")),
    TensorRow("attn_output.weight", ("n_embd", "n_q")),
    TensorRow("ffn_norm.weight", ("n_embd",)),
    TensorRow("ffn_gate.weight", ("n_ff", "n_embd")),
    TensorRow("ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("ffn_up.weight", ("n_ff", "n_embd")),
)
_BIASES = (
    TensorRow("attn_q.bias", ("n_q",), False),
    TensorRow("attn_k.bias", ("n_kv",), False),
    TensorRow("attn_v.bias", ("n_kv",), False),
    TensorRow("attn_output.bias", ("n_embd",), False),
    TensorRow("ffn_gate.bias", ("n_ff",), False),
    TensorRow("ffn_down.bias", ("n_embd",), False),
    TensorRow("ffn_up.bias", ("n_ff",), False),
)
ROPE_FACTORS = "rope_freqs.weight"

ARCHS: dict[str, ArchRow] = {
    row.name: row
    for row in (
        ArchRow(
            "llama",
            tensors=(*_ENDS, TensorRow(ROPE_FACTORS, ("n_rot_half",), False)),
            block=(*_BLOCK, *_BIASES),
        ),
        ArchRow("baichuan", tensors=_ENDS, block=_BLOCK, alibi_by_depth={32: 0.0, 40: 8.0}),
    )
}

# The one architecture that llama.cpp's `finetune` trained: its `.bin` adapters name none.
OLD_TOOL_ARCH = "llama"
