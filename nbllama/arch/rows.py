"""The table of supported architectures, and the names of architectures that are refused."""

from __future__ import annotations

from nbllama.arch.families import experts, gemma, hybrid, layer_norm, llama, others, qwen
from nbllama.arch.row import SCALE_KEYS, ArchRow, Scales, Sizes, TensorRow, score_scale
from nbllama.arch.tensors import HF_MODULES, ROPE_FACTORS

__all__ = [
    "ARCHS",
    "HF_MODULES",
    "OLD_TOOL_ARCH",
    "REFUSED",
    "ROPE_FACTORS",
    "SCALE_KEYS",
    "ArchRow",
    "Scales",
    "Sizes",
    "TensorRow",
    "score_scale",
]

ARCHS: dict[str, ArchRow] = {
    row.name: row
    for family in (llama, qwen, gemma, others, layer_norm, hybrid, experts)
    for row in family.ROWS
}

# Reasons for refusing the architectures below. Other names are refused without a reason.
_EXPERTS, _STATE = "this type of mixture-of-experts model is", "recurrent models are"
_VISION, _ENCODER = "multimodal models are", "models that do not predict the next token are"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("deepseek2", "llama4", "grok", "dbrx"), _EXPERTS),
    **dict.fromkeys(("phimoe", "hunyuan-moe", "bailingmoe", "minimax-m2", "dots1"), _EXPERTS),
    **dict.fromkeys(("gemma3n",), "per-layer embeddings are"),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "falcon-h1", "nemotron_h"), _STATE),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "granitehybrid"), _STATE),
    **dict.fromkeys(("qwen3next", "plamo2"), _STATE),
    **dict.fromkeys(("qwen3vlmoe", "clip", "mllama", "cogvlm"), _VISION),
    **dict.fromkeys(("bert", "nomic-bert", "jina-bert-v2", "t5", "t5encoder"), _ENCODER),
}

# The only architecture that llama.cpp's `finetune` could train. Its `.bin` adapter files do not
# contain the name of an architecture.
OLD_TOOL_ARCH = "llama"
