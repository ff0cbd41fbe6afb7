"""The rows: what an architecture's name decides. The only module that names one.

The numbers come from the file's keys (`llama.embedding_length`, ...), and what is optional (biases,
a separate output matrix, norms of queries and keys, RoPE factors, projections fused into one
matrix) from which tensors exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np


class TensorRow(NamedTuple):
    """One tensor: its GGUF name, its shape as names of sizes, and whether it is required.

    The name of a block's tensor is without `blk.N.`.
    """

    name: str
    shape: tuple[str, ...]
    required: bool = True


class Window(NamedTuple):
    """Blocks with a sliding window, and the defaults of what the file may say about them.

    Of `period` blocks in a row the last sees everything, the others only the last `size` tokens (0:
    all see everything). `freq_base`: their RoPE base; None: that of the other blocks.
    """

    size: int
    period: int
    freq_base: float | None


class Scales(NamedTuple):
    """Factors of a model, where the file has no key for them (`SCALE_KEYS`)."""

    embedding: float = 1.0  # on the embeddings
    residual: float = 1.0  # on what attention and feed-forward add to the stream
    logit: float = 1.0  # divisor of the logits
    attention: float | None = None  # on the scores; None: 1 / sqrt(size of a head)


SCALE_KEYS = {
    "embedding": "embedding_scale",
    "residual": "residual_scale",
    "logit": "logit_scale",
    "attention": "attention.scale",
}
"""Keys of `Scales` in a file, after "ARCH."."""


class Sizes(NamedTuple):
    """What the defaults of `Scales` depend on."""

    n_layer: int
    n_embd: int
    n_head: int


@dataclass(frozen=True)
class ArchRow:
    """What an architecture's name decides; everything else is read from the file."""

    name: str
    tensors: tuple[TensorRow, ...]
    block: tuple[TensorRow, ...]
    rope_pairing: str = "interleaved"  # or "halves"
    partial_rope: bool = False  # may rope.dimension_count be less than the head size?
    activation: str = "silu"  # or "gelu"
    scales: Callable[[Sizes], Scales] = lambda sizes: Scales()
    scale_keys: tuple[str, ...] = ()  # fields of `Scales` whose key the file may have
    fixed_keys: Mapping[str, bool] = field(default_factory=dict)  # no other value is supported
    attn_softcap: float | None = None  # default of attn_logit_softcapping; None: no such key
    logit_softcap: float | None = None  # default of final_logit_softcapping; None: no such key
    window: Window | None = None
    alibi_by_depth: Mapping[int, float] | None = None  # n_layer -> max bias (0: RoPE)
    dense_lead_key: bool = False  # leading_dense_block_count: the blocks without experts
    same_as: str = ""  # the row whose models compute the same where both have RoPE
    hf_modules: Mapping[str, str] = field(default_factory=dict)  # tensor -> module; none: no PEFT
    checked: tuple[str, ...] = ()  # kinds of models that the tests go through


_ENDS = (
    TensorRow("token_embd.weight", ("n_vocab", "n_embd")),
    TensorRow("output_norm.weight", ("n_embd",)),
    TensorRow("output.weight", ("n_vocab", "n_embd"), False),
)
_TIED = _ENDS[:2]
_ATTENTION = (
    TensorRow("attn_norm.weight", ("n_embd",)),
    TensorRow("attn_q.weight", ("n_q", "n_embd")),
    TensorRow("attn_k.weight", ("n_kv", "n_embd")),
    TensorRow("attn_v.weight", ("n_kv", "n_embd")),
    TensorRow("attn_output.weight", ("n_embd", "n_q")),
)
_FEED_FORWARD = (
    TensorRow("ffn_norm.weight", ("n_embd",)),
    TensorRow("ffn_gate.weight", ("n_ff", "n_embd")),
    TensorRow("ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("ffn_up.weight", ("n_ff", "n_embd")),
)
_BLOCK = _ATTENTION + _FEED_FORWARD
_QKV_BIASES = (
    TensorRow("attn_q.bias", ("n_q",), False),
    TensorRow("attn_k.bias", ("n_kv",), False),
    TensorRow("attn_v.bias", ("n_kv",), False),
)
_BIASES = (
    *_QKV_BIASES,
    TensorRow("attn_output.bias", ("n_embd",), False),
    TensorRow("ffn_gate.bias", ("n_ff",), False),
    TensorRow("ffn_down.bias", ("n_embd",), False),
    TensorRow("ffn_up.bias", ("n_ff",), False),
)
_QK_NORMS = (
    TensorRow("attn_q_norm.weight", ("head_dim",)),
    TensorRow("attn_k_norm.weight", ("head_dim",)),
)
_POST_NORMS = (
    TensorRow("post_attention_norm.weight", ("n_embd",)),
    TensorRow("post_ffw_norm.weight", ("n_embd",)),
)
# In one matrix: queries, keys and values; gate and up.
_FUSED = (
    TensorRow("attn_norm.weight", ("n_embd",)),
    TensorRow("attn_qkv.weight", ("n_qkv", "n_embd")),
    TensorRow("attn_qkv.bias", ("n_qkv",), False),
    TensorRow("attn_output.weight", ("n_embd", "n_q")),
    TensorRow("ffn_norm.weight", ("n_embd",)),
    TensorRow("ffn_down.weight", ("n_embd", "n_ff")),
    TensorRow("ffn_up.weight", ("n_gate_up", "n_embd")),
)
ROPE_FACTORS = "rope_freqs.weight"
_FACTORS = TensorRow(ROPE_FACTORS, ("n_rot_half",), False)

HF_MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
}
_HF_FUSED = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.gate_up_proj",
}


def _minicpm_scales(sizes: Sizes) -> Scales:
    """Those of the 2B model, for files without the keys (llama.cpp's defaults)."""
    return Scales(12.0, 1.4 / math.sqrt(sizes.n_layer), 256 / sizes.n_embd)


def _gemma_scales(largest: int, sizes: Sizes) -> Scales:
    """Scale queries by n_embd / n_head in the model of `largest` layers, else by the head size."""
    width = sizes.n_embd // sizes.n_head
    wide = sizes.n_layer == largest
    return Scales(math.sqrt(sizes.n_embd), attention=score_scale(width) if wide else None)


def score_scale(width: int) -> float:
    """1 / sqrt(width) in float32 steps, as llama.cpp has it."""
    return float(np.float32(1) / np.sqrt(np.float32(width)))


ARCHS: dict[str, ArchRow] = {
    row.name: row
    for row in (
        ArchRow(
            "llama",
            (*_ENDS, _FACTORS),
            _BLOCK + _BIASES,
            hf_modules=HF_MODULES,
            checked=(
                "7B to 30B",
                "70B (64 heads over 8)",
                "Mistral (its window ignored)",
                "Chinese-LLaMA-2-16k",
                "Llama 3 1B",
                "Yi",
            ),
        ),
        ArchRow(
            "baichuan",
            _ENDS,
            _BLOCK,
            alibi_by_depth={32: 0.0, 40: 8.0},
            same_as="llama",
            checked=("7B (RoPE)", "13B (ALiBi)"),
        ),
        ArchRow(
            "qwen2",
            _ENDS,
            _BLOCK + _QKV_BIASES,
            rope_pairing="halves",
            hf_modules=HF_MODULES,
            checked=("7B", "0.5B (tied)"),
        ),
        ArchRow(
            "qwen3",
            _ENDS,
            _BLOCK + _QK_NORMS,
            rope_pairing="halves",
            hf_modules=HF_MODULES,
            checked=("all dense sizes",),
        ),
        ArchRow("internlm2", _ENDS, _BLOCK, checked=("all sizes",)),
        ArchRow(
            "minicpm",
            (*_ENDS, _FACTORS),
            _BLOCK + _BIASES,
            scales=_minicpm_scales,
            scale_keys=("embedding", "residual", "logit"),
            hf_modules=HF_MODULES,
            checked=("with its scales in the file", "without them"),
        ),
        ArchRow(
            "gemma2",
            _TIED,
            _BLOCK + _POST_NORMS,
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
            _ENDS,
            _BLOCK + _QK_NORMS + _POST_NORMS,
            rope_pairing="halves",
            activation="gelu",
            scales=partial(_gemma_scales, 62),
            logit_softcap=0.0,
            window=Window(0, 6, 10000.0),
            hf_modules=HF_MODULES,
            checked=("270M and 1B", "4B and 12B, text", "without a window", "27B, text"),
        ),
        ArchRow(
            "phi3",
            _ENDS,
            _FUSED,
            rope_pairing="halves",
            partial_rope=True,
            hf_modules=_HF_FUSED,
            checked=("mini", "medium (GQA)", "Phi-4-mini (a part of the head turns)"),
        ),
        ArchRow(
            "deepseek",
            _ENDS,
            _BLOCK,
            dense_lead_key=True,
            hf_modules=HF_MODULES,
            checked=("dense",),
        ),
        ArchRow(
            "granite",
            (*_ENDS, _FACTORS),
            _BLOCK + _BIASES,
            scale_keys=tuple(SCALE_KEYS),
            fixed_keys={"rope.scaling.finetuned": True},  # false: a model without positions
            hf_modules=HF_MODULES,
            checked=("dense", "without its keys"),
        ),
    )
}

# What these would need, for the line that refuses them; other names are only said to be unknown.
_EXPERTS, _STATE = "mixture-of-experts models are", "recurrent models are"
_VISION, _ENCODER = "multimodal models are", "models that do not predict the next token are"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("qwen2moe", "qwen3moe", "deepseek2", "llama4", "gpt-oss", "grok"), _EXPERTS),
    **dict.fromkeys(("dbrx", "olmoe", "phimoe", "glm4moe", "ernie4_5-moe", "granitemoe"), _EXPERTS),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "falcon-h1", "nemotron_h", "lfm2"), _STATE),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "granitehybrid"), _STATE),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe", "plamo2"), _STATE),
    **dict.fromkeys(("qwen2vl", "qwen3vl", "qwen3vlmoe", "clip", "mllama", "cogvlm"), _VISION),
    **dict.fromkeys(("bert", "nomic-bert", "jina-bert-v2", "t5", "t5encoder"), _ENCODER),
}

# The one architecture that llama.cpp's `finetune` trained: its `.bin` adapters name none.
OLD_TOOL_ARCH = "llama"
