"""Small random models in which only some blocks have attention, in GGUF files for llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf import GGUFWriter

from examples.toy_models import add_experts, add_matrix, add_tokenizer


class Writer:
    """Writer of a GGUF file with metadata keys and random tensors.

    The tensors are written in the order in which they are added.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        arch: str,
        types: str | Mapping[str, str],
        seed: int,
    ) -> None:
        self.gguf, self.arch, self.types = GGUFWriter(os.fspath(path), arch), arch, types
        self.rng = np.random.default_rng(seed)
        self.gguf.add_name("toy")

    def keys(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            full = f"{self.arch}.{key}"
            if isinstance(value, bool):
                self.gguf.add_bool(full, value)
            elif isinstance(value, float):
                self.gguf.add_float32(full, value)
            elif isinstance(value, list):
                self.gguf.add_array(full, value)
            else:
                self.gguf.add_uint32(full, value)

    def matrix(self, name: str, shape: tuple[int, int], size: float | None = None) -> None:
        """Add a matrix of normally distributed numbers.

        `size` is their standard deviation (default: 1 / sqrt(n_in)).
        """
        values = self.rng.standard_normal(shape) * (size or 1 / np.sqrt(shape[1]))
        add_matrix(self.gguf, f"{name}.weight", values.astype(np.float32), self.types)

    def vector(self, name: str, size: int, mean: float = 1.0, spread: float = 0.1) -> None:
        values = mean + spread * self.rng.standard_normal(size)
        self.gguf.add_tensor(name, values.astype(np.float32))

    def taps(self, name: str, shape: tuple[int, int]) -> None:
        """Add the weights of a convolution in float32; the shape is `[channels, taps]`."""
        values = 0.6 * self.rng.standard_normal(shape) / np.sqrt(shape[1])
        self.gguf.add_tensor(f"{name}.weight", values.astype(np.float32))

    def feed_forward(self, block: str, n_embd: int, n_ff: int) -> None:
        self.matrix(f"{block}.ffn_gate", (n_ff, n_embd))
        self.matrix(f"{block}.ffn_up", (n_ff, n_embd))
        self.matrix(f"{block}.ffn_down", (n_embd, n_ff))

    def mixture(self, block: str, n_embd: int, experts: Mapping[str, Any]) -> None:
        """Add a block's router and experts; `experts` is described in `add_experts`."""
        add_experts(self.gguf, block, n_embd, experts, self.rng, self.types)

    def write(self) -> None:
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.write_tensors_to_file()
        self.gguf.close()


def make_lfm2(
    path: str | os.PathLike[str],
    *,
    arch: str = "lfm2",
    kv_heads: Sequence[int] = (0, 2, 0, 2),
    n_embd: int = 64,
    n_head: int = 4,
    n_ff: int = 96,
    n_vocab: int = 320,
    taps: int = 3,
    tied: bool = True,
    types: str | Mapping[str, str] = "F32",
    keys: Mapping[str, Any] | None = None,
    experts: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a random model of the lfm2 or lfm2moe architecture.

    `kv_heads` contains the number of KV heads of each block, or 0 for a block with a convolution.
    """
    w = Writer(path, arch, types, seed)
    sizes = {
        "block_count": len(kv_heads),
        "context_length": 512,
        "embedding_length": n_embd,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": list(kv_heads),
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1e6,
        "vocab_size": n_vocab,
        "shortconv.l_cache": taps,
    }
    w.keys(sizes | dict(keys or {}))
    add_tokenizer(w.gguf, "bpe", n_vocab)
    w.matrix("token_embd", (n_vocab, n_embd), 2 / np.sqrt(n_embd) if tied else 1.0)
    w.vector("token_embd_norm.weight", n_embd)
    if not tied:
        w.matrix("output", (n_vocab, n_embd))
    for i, n_kv in enumerate(kv_heads):
        block, d = f"blk.{i}", n_embd // n_head
        w.vector(f"{block}.attn_norm.weight", n_embd)
        w.vector(f"{block}.ffn_norm.weight", n_embd)
        if n_kv:
            w.vector(f"{block}.attn_q_norm.weight", d)
            w.vector(f"{block}.attn_k_norm.weight", d)
            w.matrix(f"{block}.attn_q", (n_embd, n_embd))
            w.matrix(f"{block}.attn_k", (n_kv * d, n_embd))
            w.matrix(f"{block}.attn_v", (n_kv * d, n_embd))
            w.matrix(f"{block}.attn_output", (n_embd, n_embd))
        else:
            w.taps(f"{block}.shortconv.conv", (n_embd, taps))
            w.matrix(f"{block}.shortconv.in_proj", (3 * n_embd, n_embd))
            w.matrix(f"{block}.shortconv.out_proj", (n_embd, n_embd))
        if experts and i >= experts.get("first", 0):
            w.mixture(block, n_embd, experts)
        else:
            w.feed_forward(block, n_embd, n_ff)
    w.write()


def make_qwen35(
    path: str | os.PathLike[str],
    *,
    arch: str = "qwen35",
    n_layer: int = 5,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int = 24,
    n_rot: int = 12,
    n_ff: int = 96,
    n_vocab: int = 320,
    heads: int = 4,
    key_heads: int = 4,
    size: int = 16,
    taps: int = 4,
    n_idle: int = 0,
    tied: bool = True,
    types: str | Mapping[str, str] = "F32",
    keys: Mapping[str, Any] | None = None,
    experts: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a random model of the qwen35 or qwen35moe architecture.

    `heads`, `key_heads`, `size` (of a head) and `taps` (of the convolution) describe the delta
    nets. `n_idle` is the number of additional blocks at the end that predict tokens after the next
    one.
    """
    w = Writer(path, arch, types, seed)
    third, period = n_rot // 2 // 3, (keys or {}).get("full_attention_interval", 4)
    sizes = {
        "block_count": n_layer + n_idle,
        "context_length": 512,
        "embedding_length": n_embd,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "rope.dimension_count": n_rot,
        "rope.dimension_sections": [n_rot // 2 - 2 * third, third, third, 0],
        "vocab_size": n_vocab,
        "ssm.conv_kernel": taps,
        "ssm.inner_size": heads * size,
        "ssm.state_size": size,
        "ssm.time_step_rank": heads,
        "ssm.group_count": key_heads,
    }
    w.keys(sizes | ({"nextn_predict_layers": n_idle} if n_idle else {}) | dict(keys or {}))
    add_tokenizer(w.gguf, "bpe", n_vocab)
    w.matrix("token_embd", (n_vocab, n_embd), 2 / np.sqrt(n_embd) if tied else 1.0)
    w.vector("output_norm.weight", n_embd)
    if not tied:
        w.matrix("output", (n_vocab, n_embd))
    n_qkv = (heads + 2 * key_heads) * size
    for i in range(n_layer + n_idle):
        block = f"blk.{i}"
        w.vector(f"{block}.attn_norm.weight", n_embd)
        w.vector(f"{block}.post_attention_norm.weight", n_embd)
        if (i + 1) % period == 0 or i >= n_layer:
            w.vector(f"{block}.attn_q_norm.weight", head_dim)
            w.vector(f"{block}.attn_k_norm.weight", head_dim)
            w.matrix(f"{block}.attn_q", (2 * n_head * head_dim, n_embd))
            w.matrix(f"{block}.attn_k", (n_head_kv * head_dim, n_embd))
            w.matrix(f"{block}.attn_v", (n_head_kv * head_dim, n_embd))
            w.matrix(f"{block}.attn_output", (n_embd, n_head * head_dim))
        else:
            w.matrix(f"{block}.attn_qkv", (n_qkv, n_embd))
            w.matrix(f"{block}.attn_gate", (heads * size, n_embd))
            w.taps(f"{block}.ssm_conv1d", (n_qkv, taps))
            w.vector(f"{block}.ssm_dt.bias", heads, 0.0, 0.5)
            w.vector(f"{block}.ssm_a", heads, -0.5)
            w.matrix(f"{block}.ssm_alpha", (heads, n_embd))
            w.matrix(f"{block}.ssm_beta", (heads, n_embd))
            w.vector(f"{block}.ssm_norm.weight", size)
            w.matrix(f"{block}.ssm_out", (n_embd, heads * size))
        if experts and i >= experts.get("first", 0):
            w.mixture(block, n_embd, experts)
        else:
            w.feed_forward(block, n_embd, n_ff)
        if i >= n_layer:
            w.matrix(f"{block}.nextn.eh_proj", (n_embd, 2 * n_embd))
            w.vector(f"{block}.nextn.enorm.weight", n_embd)
            w.vector(f"{block}.nextn.hnorm.weight", n_embd)
    w.write()
