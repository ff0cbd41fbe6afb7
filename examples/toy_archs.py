"""The registry of tested architectures: a small random model for each kind of real model.

`MODELS` is the only list of these models. tests/arch/test_archs.py and test_arch_gradients.py check
the logits, gradients, adapters and merges of every entry, and another test checks that
`--list-archs` lists exactly these architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import nbllama
from examples.toy_gemma4 import make_gemma4
from examples.toy_hybrids import make_lfm2, make_qwen35
from examples.toy_models import make_llama
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import EVERY_SLOT, without_tensor
from nbllama.model.passes import Model

WIDE = {"n_embd": 256, "n_ff": 256}
WIDE_GEMMA4 = WIDE | {"head_dims": (64, 128)}
WIDE_QWEN35 = WIDE | {"size": 64, "head_dim": 64}
MAKERS: dict[str, Callable[..., None]] = {
    "gemma4": make_gemma4,
    "lfm2": make_lfm2,
    "lfm2moe": make_lfm2,
    "qwen35": make_qwen35,
    "qwen35moe": make_qwen35,
}


class Thin(NamedTuple):
    """A small model: its architecture and the arguments for the function that writes it.

    `wide` contains the arguments to change so that rows consist of whole K-quant blocks.
    """

    arch: str
    options: dict[str, Any]
    wide: dict[str, Any] = WIDE

    def make(self, path: Path, **changes: Any) -> None:
        options: dict[str, Any] = {"arch": self.arch, **self.options, **changes}
        if self.arch in MAKERS:
            MAKERS[self.arch](path, **options)
        else:
            make_llama(path, **options)

    def make_wide(self, path: Path, types: str) -> None:
        self.make(path, types=types, **self.wide)

    @property
    def deep(self) -> bool:
        """Whether the model has as many layers as the real one.

        It does if llama.cpp's behaviour depends on the number of layers.
        """
        return bool(self.options.get("n_layer", 2) > 8)


QKV = ("attn_q", "attn_k", "attn_v")
GEMMA: dict[str, Any] = {"tied": True, "post_norms": True, "head_dim": 24}
GEMMA3 = GEMMA | {"qk_norm": True, "rope_freq_base": 1e6}
WIDE_GEMMA = WIDE | {"head_dim": 128}

OLMO2: dict[str, Any] = {"pre_norms": False, "post_norms": True, "qk_norm": "whole"}
WINDOWS = {
    "attention.sliding_window": 20,
    "attention.sliding_window_pattern": [True, True, True, False, True],
}
EXAONE4 = OLMO2 | {"qk_norm": True, "rope_freq_base": 1e6, "tokenizer": "bpe"}
LAYER_NORM: dict[str, Any] = {"layer_norm": True, "norm_biases": True}
UNGATED_BIASES = (*QKV, "attn_output", "ffn_up", "ffn_down")
# ggml's GELU is a step function; a small ffn_down reduces the effect of different steps.
GELU: dict[str, Any] = LAYER_NORM | {
    "gated": False, "biases": UNGATED_BIASES, "down_size": 0.1, "tokenizer": "bpe",
}  # fmt: skip
COHERE: dict[str, Any] = {
    "layer_norm": True, "second_norm": "", "tied": True, "tokenizer": "bpe",
}  # fmt: skip
XIELU = {
    "xielu.alpha_p": [0.8, 0.3],
    "xielu.alpha_n": [0.4, 25.0],
    "xielu.beta": [0.5, 0.4],
    "xielu.eps": [-1e-6, -1e-3],
}

BPE: dict[str, Any] = {"rope_freq_base": 1e6, "tokenizer": "bpe"}
DENSE = {
    "leading_dense_block_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_weights_scale": 1.0,
}


def mixture(count: int, used: int, n_ff: int, **more: Any) -> dict[str, Any]:
    """Return the options of a mixture of experts: `experts`, and the metadata `keys`.

    `used` is the number of experts per token; `more` contains more options of `add_experts`.
    """
    keys: dict[str, Any] = {"expert_count": count, "expert_used_count": used}
    keys |= more.pop("keys", {})
    return {"experts": {"count": count, "n_ff": n_ff, **more}, "keys": keys}


QWEN3_MOE = BPE | {"qk_norm": True, "head_dim": 24}
GRANITE = {"embedding_scale": 12.0, "residual_scale": 0.9, "logit_scale": 8.0}
GRANITE_MOE = GRANITE | {"attention.scale": 0.1}

GLM_MOE: dict[str, Any] = {
    "biases": QKV, "second_norm": "post_attention_norm", "tokenizer": "bpe",
}  # fmt: skip
GLM_KEYS = {
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
    "expert_gating_func": 2,
    "leading_dense_block_count": 1,
}

MODELS: dict[str, Thin] = {
    "llama, 7B to 30B": Thin("llama", {}),
    "llama, 70B (64 heads, 8 KV heads)": Thin(
        "llama",
        {"n_embd": 512, "n_head": 64, "n_head_kv": 8, "n_ff": 128},
        {"n_ff": 256},
    ),
    "llama, Mistral (window ignored)": Thin(
        "llama", {"keys": {"attention.sliding_window": 16}, "rope_freq_base": 1e6}
    ),
    "llama, Chinese-LLaMA-2-16k": Thin(
        "llama", {"n_head_kv": 4, "rope_scaling": ("linear", 4.0), "n_vocab": 555}
    ),
    "llama, Llama 3 1B": Thin(
        "llama",
        {"tied": True, "rope_factors": True, "rope_freq_base": 500000.0, "tokenizer": "bpe"},
    ),
    "llama, Yi": Thin("llama", {"rope_freq_base": 5e6, "n_head_kv": 1}),
    "baichuan, 7B (RoPE)": Thin(
        "baichuan", {"n_layer": 32, "n_embd": 32, "n_ff": 48, "n_head_kv": 4}
    ),
    "baichuan, 13B (ALiBi)": Thin(
        "baichuan",
        {"n_layer": 40, "n_embd": 40, "n_head": 5, "n_head_kv": 5, "n_ff": 48},
        WIDE | {"n_head": 4, "n_head_kv": 4},
    ),
    "qwen2, 7B": Thin("qwen2", BPE | {"biases": QKV}),
    "qwen2, 0.5B (tied)": Thin(
        "qwen2",
        BPE | {"biases": QKV, "tied": True, "n_head": 7, "n_head_kv": 1, "n_embd": 56},
        WIDE | {"n_head": 4},
    ),
    "qwen3, all dense sizes": Thin(
        "qwen3", BPE | {"qk_norm": True, "head_dim": 24}, WIDE | {"head_dim": 128}
    ),
    "internlm2, all sizes": Thin("internlm2", {"rope_freq_base": 1e6}),
    "minicpm, with its scales in the file": Thin(
        "minicpm",
        {
            "n_head_kv": 4,
            "tied": True,
            "keys": {"embedding_scale": 12.0, "residual_scale": 0.4, "logit_scale": 3.0},
        },
    ),
    "minicpm, without them": Thin("minicpm", {"n_head_kv": 4}),
    "gemma2, 2B and 9B": Thin(
        "gemma2",
        GEMMA
        | {
            "keys": {
                "attention.sliding_window": 20,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 3.0,
            }
        },
        WIDE_GEMMA,
    ),
    "gemma2, without the optional keys": Thin("gemma2", GEMMA, WIDE_GEMMA),
    "gemma2, 27B": Thin("gemma2", GEMMA | {"n_layer": 46, "n_embd": 40, "n_ff": 48}, WIDE_GEMMA),
    "gemma3, 270M and 1B": Thin(
        "gemma3",
        GEMMA3 | {"n_layer": 7, "keys": {"attention.sliding_window": 20}},
        WIDE_GEMMA,
    ),
    "gemma3, 4B and 12B, text": Thin(
        "gemma3",
        GEMMA3
        | {
            "n_layer": 6,
            "rope_scaling": ("linear", 8.0),
            "keys": {"attention.sliding_window": 33, "final_logit_softcapping": 2.0},
        },
        WIDE_GEMMA,
    ),
    "gemma3, without a window": Thin("gemma3", GEMMA3, WIDE_GEMMA),
    "gemma3, 27B, text": Thin(
        "gemma3",
        GEMMA3
        | {"n_layer": 62, "n_embd": 40, "n_ff": 48, "keys": {"attention.sliding_window": 20}},
        WIDE_GEMMA,
    ),
    "phi3, mini": Thin("phi3", {"fused": True, "n_head_kv": 4}),
    "phi3, medium (GQA)": Thin("phi3", {"fused": True, "tokenizer": "bpe"}),
    "phi3, Phi-4-mini (partial RoPE)": Thin(
        "phi3", {"fused": True, "tied": True, "n_rot": 12, "tokenizer": "bpe"}, WIDE | {"n_rot": 48}
    ),
    "deepseek, dense": Thin("deepseek", {"keys": DENSE}),
    "granite, dense": Thin(
        "granite",
        {
            "tied": True,
            "keys": {
                "embedding_scale": 12.0,
                "residual_scale": 0.4,
                "logit_scale": 8.0,
                "attention.scale": 0.1,
            },
        },
    ),
    "granite, without the optional keys": Thin(
        "granite", {"biases": True, "keys": {"logit_scale": 1.0}}
    ),
    "smollm3, 3B (no RoPE in every fourth block)": Thin(
        "smollm3", {"n_layer": 5, "tied": True, "rope_freq_base": 5e6, "tokenizer": "bpe"}
    ),
    "gemma, 2B and 7B": Thin("gemma", GEMMA | {"post_norms": False, "n_head_kv": 1}, WIDE_GEMMA),
    "mistral3, Ministral 3 (YaRN, temperature)": Thin(
        "mistral3",
        {
            "head_dim": 24,
            "rope_freq_base": 1e6,
            "rope_scaling": ("yarn", 16.0, 16),
            "keys": {
                "attention.temperature_scale": 0.1,
                "rope.scaling.yarn_beta_fast": 24.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.yarn_log_multiplier": 0.5,
            },
        },
        WIDE | {"head_dim": 128},
    ),
    "mistral3, without them": Thin("mistral3", {"biases": True, "tied": True}),
    "ernie4_5, 0.3B": Thin("ernie4_5", {"tied": True, "head_dim": 24}, WIDE | {"head_dim": 128}),
    "ernie4_5, with biases": Thin("ernie4_5", {"biases": QKV}),
    "seed_oss, 36B": Thin(
        "seed_oss",
        BPE | {"biases": QKV, "head_dim": 24, "second_norm": "post_attention_norm"},
        WIDE | {"head_dim": 128},
    ),
    "hunyuan-dense, 0.5B to 7B": Thin(
        "hunyuan-dense", BPE | {"qk_norm": True, "tied": True, "keys": {"expert_count": 1}}
    ),
    "hunyuan-dense, with rope.scaling.alpha": Thin(
        "hunyuan-dense", {"qk_norm": True, "keys": {"rope.scaling.alpha": 1000.0}}
    ),
    "qwen2vl, 2B to 72B, text": Thin(
        "qwen2vl", BPE | {"biases": QKV, "keys": {"rope.dimension_sections": [2, 3, 3, 0]}}
    ),
    "qwen3vl, 2B to 32B, text": Thin(
        "qwen3vl",
        BPE | {"qk_norm": True, "head_dim": 24, "keys": {"rope.dimension_sections": [4, 4, 4, 0]}},
        WIDE | {"head_dim": 128},
    ),
    "olmo2, OLMo 2": Thin("olmo2", OLMO2),
    "olmo2, OLMo 3 (windows)": Thin("olmo2", OLMO2 | {"n_layer": 5, "keys": WINDOWS}),
    "olmo2, OLMo 3 with YaRN": Thin(
        "olmo2",
        OLMO2
        | {
            "n_layer": 4,
            "rope_scaling": ("yarn", 8.0, 64),
            "keys": {"attention.sliding_window": 20},
        },
    ),
    "exaone4, 1.2B": Thin(
        "exaone4", EXAONE4 | {"tied": True, "rope_factors": True}, WIDE | {"head_dim": 64}
    ),
    "exaone4, 32B (windows)": Thin(
        "exaone4",
        EXAONE4
        | {"n_layer": 64, "n_embd": 32, "n_ff": 48, "keys": {"attention.sliding_window": 20}},
        WIDE | {"head_dim": 64},
    ),
    "glm4, GLM-4-0414 9B and 32B": Thin(
        "glm4",
        {"post_norms": True, "fused": "up", "n_rot": 8, "biases": QKV, "tokenizer": "bpe"},
        WIDE | {"n_rot": 32},
    ),
    "arcee, AFM 4.5B": Thin("arcee", {"gated": False, "rope_scaling": ("yarn", 4.0, 128)}),
    "apertus, 8B and 70B": Thin(
        "apertus", BPE | {"gated": False, "qk_norm": True, "rope_factors": True, "keys": XIELU}
    ),
    "nemotron, Minitron 4B and 8B": Thin(
        "nemotron", LAYER_NORM | {"gated": False, "n_rot": 8}, WIDE | {"n_rot": 32}
    ),
    "starcoder2, 3B to 15B": Thin(
        "starcoder2",
        GELU | {"tied": True},
    ),
    "stablelm, 3B (partial RoPE)": Thin(
        "stablelm", LAYER_NORM | {"n_rot": 4, "n_head_kv": 4}, WIDE | {"n_rot": 16}
    ),
    "stablelm, StableLM 2 1.6B (biases)": Thin("stablelm", LAYER_NORM | {"biases": QKV}),
    "phi2, 1, 1.5 and 2": Thin(
        "phi2",
        GELU | {"n_rot": 8, "n_head_kv": 4, "second_norm": "", "output_bias": True},
        WIDE | {"n_rot": 32},
    ),
    "command-r, 35B": Thin("command-r", COHERE | {"keys": {"logit_scale": 0.0625}}),
    "command-r, without a logit scale": Thin("command-r", COHERE | {"n_head_kv": 4}),
    "cohere2, 7B and 111B": Thin(
        "cohere2",
        COHERE | {"n_layer": 5, "keys": {"logit_scale": 0.25, "attention.sliding_window": 20}},
    ),
    "lfm2, 350M to 2.6B": Thin("lfm2", {}),
    "qwen35, 0.8B and 2B": Thin("qwen35", {}, WIDE_QWEN35),
    "qwen35, 4B to 27B (heads share keys)": Thin(
        "qwen35", {"key_heads": 2, "size": 12, "tied": False, "n_layer": 4}, WIDE_QWEN35
    ),
    "qwen35, with extra prediction blocks": Thin(
        "qwen35", {"n_idle": 1, "keys": {"full_attention_interval": 2}, "n_layer": 3}, WIDE_QWEN35
    ),
    "lfm2moe, 8B-A1B": Thin(
        "lfm2moe",
        mixture(
            8,
            2,
            40,
            first=1,
            select=True,
            keys={
                "expert_feed_forward_length": 40,
                "expert_gating_func": 2,
                "leading_dense_block_count": 1,
            },
        ),
        WIDE
        | mixture(
            8,
            2,
            256,
            first=1,
            select=True,
            keys={
                "expert_feed_forward_length": 256,
                "expert_gating_func": 2,
                "leading_dense_block_count": 1,
            },
        ),
    ),
    "qwen35moe, 35B-A3B": Thin(
        "qwen35moe",
        mixture(
            8,
            2,
            40,
            shared=40,
            shared_weight=True,
            keys={"expert_feed_forward_length": 40, "expert_shared_feed_forward_length": 40},
        ),
        WIDE_QWEN35
        | mixture(
            8,
            2,
            256,
            shared=256,
            shared_weight=True,
            keys={"expert_feed_forward_length": 256, "expert_shared_feed_forward_length": 256},
        ),
    ),
    "gemma4, E2B and E4B": Thin(
        "gemma4",
        {"keys": {"final_logit_softcapping": 5.0}},
        WIDE_GEMMA4 | {"n_per_layer": 256},
    ),
    "gemma4, 31B": Thin(
        "gemma4",
        {
            "windows": (True, False, True, False),
            "shared": 0,
            "kv_heads": (4, 2),
            "n_per_layer": 0,
            "keys_are_values": True,
        },
        WIDE_GEMMA4,
    ),
    "lfm2, with a window": Thin(
        "lfm2",
        {
            "tied": False,
            "taps": 4,
            "kv_heads": (4, 0, 0),
            "keys": {"attention.sliding_window": 20},
        },
    ),
}


MODELS |= {
    "llama, Mixtral (experts)": Thin(
        "llama", mixture(8, 2, 96), {"n_embd": 256} | mixture(8, 2, 256) | {"n_ff": 256}
    ),
    "qwen3moe, 30B-A3B and 235B-A22B": Thin(
        "qwen3moe",
        QWEN3_MOE | mixture(24, 5, 40, keys={"expert_feed_forward_length": 40}),
        WIDE | {"head_dim": 128} | mixture(8, 3, 256, keys={"expert_feed_forward_length": 256}),
    ),
    "qwen2moe, 1.5-MoE A2.7B and 57B-A14B": Thin(
        "qwen2moe",
        BPE
        | {"biases": QKV, "n_head_kv": 4}
        | mixture(
            12,
            4,
            40,
            shared=72,
            shared_weight=True,
            keys={"expert_feed_forward_length": 40, "expert_shared_feed_forward_length": 72},
        ),
        WIDE
        | mixture(
            6,
            2,
            256,
            shared=512,
            shared_weight=True,
            keys={"expert_feed_forward_length": 256, "expert_shared_feed_forward_length": 512},
        ),
    ),
    "olmoe, 1B-7B": Thin(
        "olmoe",
        {"qk_norm": "whole", "n_head_kv": 4} | mixture(20, 6, 96),
        WIDE | mixture(8, 3, 256),
    ),
    "granitemoe, 1B-A400M and 3B-A800M": Thin(
        "granitemoe",
        {"tied": True} | mixture(16, 4, 96, keys=GRANITE_MOE),
        WIDE | mixture(6, 2, 256, keys=GRANITE_MOE),
    ),
    "granitemoe, with a shared expert": Thin(
        "granitemoe",
        {"tied": True}
        | mixture(8, 3, 96, shared=48, keys=GRANITE | {"expert_shared_feed_forward_length": 48}),
        WIDE
        | mixture(6, 2, 256, shared=256, keys=GRANITE | {"expert_shared_feed_forward_length": 256}),
    ),
    "ernie4_5-moe, 21B-A3B and 300B-A47B": Thin(
        "ernie4_5-moe",
        {"n_layer": 3, "tied": True}
        | mixture(
            16,
            5,
            40,
            first=1,
            shared=80,
            select=True,
            keys={
                "expert_feed_forward_length": 40,
                "expert_shared_feed_forward_length": 80,
                "interleave_moe_layer_step": 1,
                "leading_dense_block_count": 1,
            },
        ),
        WIDE
        | mixture(
            6,
            2,
            256,
            first=1,
            shared=512,
            select=True,
            keys={
                "expert_feed_forward_length": 256,
                "expert_shared_feed_forward_length": 512,
                "interleave_moe_layer_step": 1,
                "leading_dense_block_count": 1,
            },
        ),
    ),
    "glm4moe, 4.5 Air (its MTP block is ignored)": Thin(
        "glm4moe",
        GLM_MOE
        | {"n_layer": 4, "n_rot": 8}
        | mixture(
            16,
            4,
            40,
            first=1,
            shared=40,
            select=True,
            keys=GLM_KEYS | {"expert_feed_forward_length": 40, "nextn_predict_layers": 1},
        ),
        WIDE
        | {"n_rot": 32}
        | mixture(
            6,
            2,
            256,
            first=1,
            shared=256,
            select=True,
            keys=GLM_KEYS | {"expert_feed_forward_length": 256, "nextn_predict_layers": 1},
        ),
    ),
    "glm4moe, 4.5 and 4.6, 355B (per-head norms)": Thin(
        "glm4moe",
        GLM_MOE
        | {"n_layer": 3, "n_rot": 8, "qk_norm": True}
        | mixture(
            16,
            4,
            40,
            first=1,
            shared=40,
            select=True,
            keys=GLM_KEYS | {"expert_feed_forward_length": 40},
        ),
        WIDE
        | {"n_rot": 32}
        | mixture(
            6,
            2,
            256,
            first=1,
            shared=256,
            select=True,
            keys=GLM_KEYS | {"expert_feed_forward_length": 256},
        ),
    ),
    "gpt-oss, 20B and 120B": Thin(
        "gpt-oss",
        {
            "n_layer": 3,
            "head_dim": 24,
            "biases": True,
            "second_norm": "post_attention_norm",
            "rope_scaling": ("yarn", 8.0, 64),
            "tokenizer": "bpe",
        }
        | mixture(
            16,
            4,
            48,
            biases=True,
            sinks=4,
            keys={"expert_feed_forward_length": 48, "attention.sliding_window": 20},
        ),
        WIDE
        | {"head_dim": 128}
        | mixture(
            8,
            4,
            256,
            biases=True,
            sinks=4,
            keys={"expert_feed_forward_length": 256, "attention.sliding_window": 20},
        ),
    ),
}


def random_adapter(model: Model, norms: bool) -> Adapter:
    """Return an adapter with random A and B for every tensor that can have a pair.

    The ranks are 1 to 3. Without `norms`, norms and a tied `token_embd` have no pairs.
    """
    missing = without_tensor(model.shapes)
    if model.hp.tied_output and not norms:
        missing.add("tok_embd")  # llama.cpp cannot run such an adapter
    ranks = {
        slot.name: 0 if slot.name in missing or (slot.kind == "norm" and not norms) else 1 + i % 3
        for i, slot in enumerate(EVERY_SLOT)
    }
    adapter = nbllama.init_adapter(model, rank=2, alpha=3, ranks=ranks)
    rng = np.random.default_rng(9)
    for p in adapter.parameters().values():
        p[...] = rng.standard_normal(p.shape) * (0.3 if len(p) < 4 else 0.1)
    return adapter
