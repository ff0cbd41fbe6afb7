"""The whole model in plain numpy, from the reference functions of the op pages: what gradients are
checked against.

Slow and exact: with float64 arrays the loss is good for finite differences. Nothing here is used
for training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nbllama.arch import Hparams
from nbllama.data.batch import Batch
from nbllama.lora import Adapter
from nbllama.model import Model
from nbllama.ops.activation import gated_ref
from nbllama.ops.attention import alibi_slopes, attention_ref
from nbllama.ops.loss import cross_entropy_ref
from nbllama.ops.rms_norm import rms_norm_ref
from nbllama.ops.rope import rope_ref


class ReferenceModel:
    """Every tensor of a model decoded to `dtype`, and its forward pass."""

    def __init__(self, model: Model, dtype: type = np.float64) -> None:
        self.hp: Hparams = model.hp
        self.dtype = dtype
        self.tensors: dict[str, np.ndarray] = {
            n: model.tensor(n).astype(dtype) for n in model.gguf.tensors
        }
        self._tables = model.rope_tables

    def weight(self, name: str, params: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
        """Base tensor `name` plus its LoRA delta; `params` by NAME.lora_a and NAME.lora_b."""
        w = self.tensors[name]
        if name + ".lora_a" not in params:
            return w
        delta = params[name + ".lora_b"] @ params[name + ".lora_a"]
        return w + scale * delta.reshape(w.shape)

    def logits(self, batch: Batch, params: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
        """Logits `[N, V]` of a batch."""
        hp, n = self.hp, len(batch.tokens)
        slopes = alibi_slopes(hp.n_head, hp.alibi_max_bias)
        tables = self._tables(int(batch.positions.max()) + 1)
        cos: np.ndarray = tables[0].astype(self.dtype)
        sin: np.ndarray = tables[1].astype(self.dtype)

        halves = hp.rope_pairing == "halves"

        def w(name: str) -> np.ndarray:
            return self.weight(name + ".weight", params, scale)

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            return x @ w(name).T + self.tensors.get(name + ".bias", 0)

        x = w("token_embd")[batch.tokens]
        for layer in range(hp.n_layer):
            blk = f"blk.{layer}."
            h = rms_norm_ref(x, w(blk + "attn_norm"), hp.rms_eps)
            q = linear(h, blk + "attn_q").reshape(n, hp.n_head, hp.head_dim)
            k = linear(h, blk + "attn_k").reshape(n, hp.n_head_kv, hp.head_dim)
            v = linear(h, blk + "attn_v").reshape(n, hp.n_head_kv, hp.head_dim)
            if hp.alibi_max_bias == 0:
                q, k = (rope_ref(y, batch.positions, cos, sin, halves) for y in (q, k))
            offsets = batch.seq_offsets
            att = attention_ref(q, k, v, offsets, offsets, hp.attn_scale, slopes).reshape(n, -1)
            x = x + linear(att, blk + "attn_output")
            h = rms_norm_ref(x, w(blk + "ffn_norm"), hp.rms_eps)
            gate, up = linear(h, blk + "ffn_gate"), linear(h, blk + "ffn_up")
            act = gated_ref(gate, up, hp.activation == "gelu")
            x = x + linear(act, blk + "ffn_down")
        x = rms_norm_ref(x, w("output_norm"), hp.rms_eps)
        return x @ (w("output") if "output.weight" in self.tensors else w("token_embd")).T

    def loss(self, batch: Batch, params: Mapping[str, np.ndarray], scale: float) -> float:
        """Mean loss over the trained positions of a batch."""
        rows = batch.targets >= 0
        z = self.logits(batch, params, scale)[rows]
        return float(cross_entropy_ref(z, batch.targets[rows]).mean())


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter's arrays as float64 copies, to be varied."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
