"""Small random Gemma 4 models, whose blocks differ in size, in GGUF files for llama.cpp."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.toy_hybrids import Writer
from examples.toy_models import add_tokenizer


def make_gemma4(
    path: str | os.PathLike[str],
    *,
    arch: str = "gemma4",
    windows: Sequence[bool] = (True, True, False) * 2,
    shared: int = 3,
    n_embd: int = 64,
    n_head: int = 4,
    kv_heads: tuple[int, int] = (2, 1),
    head_dims: tuple[int, int] = (16, 24),
    n_ff: int = 96,
    n_per_layer: int = 16,
    n_vocab: int = 320,
    tied: bool = True,
    keys_are_values: bool = False,
    idle_keys: bool = False,
    types: str | Mapping[str, str] = "F32",
    keys: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a random model of the gemma4 architecture.

    `windows` says for each block whether attention has a window. `kv_heads` and `head_dims` contain
    one value for blocks with a window and one for blocks without. The last `shared` blocks use the
    keys and values of earlier blocks, and their feed-forward layer is twice as wide; with
    `idle_keys`, they also have key and value matrices, which are unused. `n_per_layer` is the width
    of the per-block embeddings; 0 means that there are none. With `keys_are_values`, blocks without
    a window have no attn_v.
    """
    w, n_layer = Writer(path, arch, types, seed), len(windows)
    start = n_layer - shared
    wide = [n_ff if i < start else 2 * n_ff for i in range(n_layer)]
    sizes = {
        "block_count": n_layer,
        "context_length": 512,
        "embedding_length": n_embd,
        "feed_forward_length": wide,
        "attention.head_count": n_head,
        "attention.head_count_kv": [kv_heads[0] if on else kv_heads[1] for on in windows],
        "attention.key_length": head_dims[1],
        "attention.value_length": head_dims[1],
        "attention.key_length_swa": head_dims[0],
        "attention.value_length_swa": head_dims[0],
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 20,
        "attention.sliding_window_pattern": list(windows),
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": n_per_layer,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
        "rope.dimension_count": head_dims[1],
        "rope.dimension_count_swa": head_dims[0],
        "vocab_size": n_vocab,
    }
    w.keys(sizes | dict(keys or {}))
    add_tokenizer(w.gguf, "bpe", n_vocab)
    w.matrix("token_embd", (n_vocab, n_embd), 2 / np.sqrt(n_embd) if tied else 1.0)
    if n_per_layer:
        every = n_layer * n_per_layer
        w.matrix("per_layer_token_embd", (n_vocab, every), 0.25)
        w.matrix("per_layer_model_proj", (every, n_embd), 1.0)
        w.vector("per_layer_proj_norm.weight", n_per_layer)
    w.vector("output_norm.weight", n_embd)
    if not tied:
        w.matrix("output", (n_vocab, n_embd))
    half = head_dims[1] // 2
    factors = np.where(np.arange(half) < half // 4, 1, 1e30).astype(np.float32)
    w.gguf.add_tensor("rope_freqs.weight", factors)
    for i, window in enumerate(windows):
        block, kind = f"blk.{i}", 0 if window else 1
        d, n_kv = head_dims[kind], kv_heads[kind]
        for name in ("attn_norm", "post_attention_norm", "ffn_norm"):
            w.vector(f"{block}.{name}.weight", n_embd)
        # ggml's GELU is a step function; small weights reduce the effect of different steps.
        w.vector(f"{block}.post_ffw_norm.weight", n_embd, 0.05, 0.01)
        # Gemma 4 does not scale attention scores; these small norms keep the scores small.
        w.vector(f"{block}.attn_q_norm.weight", d, 0.5)
        w.matrix(f"{block}.attn_q", (n_head * d, n_embd))
        if i < start or idle_keys:
            w.vector(f"{block}.attn_k_norm.weight", d, 0.5)
            w.matrix(f"{block}.attn_k", (n_kv * d, n_embd))
            if window or not keys_are_values:
                w.matrix(f"{block}.attn_v", (n_kv * d, n_embd))
        w.matrix(f"{block}.attn_output", (n_embd, n_head * d))
        w.feed_forward(block, n_embd, wide[i])
        if n_per_layer:
            w.matrix(f"{block}.inp_gate", (n_per_layer, n_embd))
            w.matrix(f"{block}.proj", (n_embd, n_per_layer))
            w.vector(f"{block}.post_norm.weight", n_embd, 0.05, 0.01)
        w.vector(f"{block}.layer_output_scale.weight", 1, 0.8)
    w.write()
