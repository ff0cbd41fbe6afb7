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
from nbllama.ops.softcap import soft_cap_ref


class ReferenceModel:
    """Every tensor of a model decoded to `dtype`, and its forward pass."""

    def __init__(self, model: Model, dtype: type = np.float64) -> None:
        self.hp: Hparams = model.hp
        self.dtype = dtype
        self.tensors: dict[str, np.ndarray] = {
            n: model.tensor(n).astype(dtype) for n in model.gguf.tensors
        }
        self._tables, self._linears = model.rope_tables, model.linears

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
        offsets, most = batch.seq_offsets, int(batch.positions.max()) + 1

        def w(name: str) -> np.ndarray:
            return self.weight(name + ".weight", params, scale)

        def linear(x: np.ndarray, layer: int, slot: str) -> np.ndarray:
            tensor, rows = self._linears[slot]
            name = f"blk.{layer}.{tensor}"
            y: np.ndarray = x @ w(name)[rows].T
            return y + self.tensors[name + ".bias"][rows] if name + ".bias" in self.tensors else y

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            """The norm, where the model has it."""
            if name + ".weight" not in self.tensors:
                return x
            return rms_norm_ref(x.reshape(-1, x.shape[-1]), w(name), hp.rms_eps).reshape(x.shape)

        x = hp.embed_scale * w("token_embd")[batch.tokens]
        for layer in range(hp.n_layer):
            blk = f"blk.{layer}."
            h = norm(x, blk + "attn_norm")
            q = linear(h, layer, "q").reshape(n, hp.n_head, hp.head_dim)
            k = linear(h, layer, "k").reshape(n, hp.n_head_kv, hp.head_dim)
            v = linear(h, layer, "v").reshape(n, hp.n_head_kv, hp.head_dim)
            q, k = norm(q, blk + "attn_q_norm"), norm(k, blk + "attn_k_norm")
            if hp.alibi_max_bias == 0:
                tables = self._tables(most, layer)
                cos: np.ndarray = tables[0].astype(self.dtype)
                sin: np.ndarray = tables[1].astype(self.dtype)
                halves = hp.rope_pairing == "halves"
                q, k = (rope_ref(y, batch.positions, cos, sin, halves) for y in (q, k))
            att = attention_ref(
                q, k, v, offsets, offsets, hp.attn_scale, slopes, hp.window_at(layer),
                hp.attn_softcap,
            ).reshape(n, -1)  # fmt: skip
            y = norm(linear(att, layer, "o"), blk + "post_attention_norm")
            x = x + hp.residual_scale * y
            h = norm(x, blk + "ffn_norm")
            gate, up = linear(h, layer, "gate"), linear(h, layer, "up")
            act = gated_ref(gate, up, hp.activation == "gelu")
            y = norm(linear(act, layer, "down"), blk + "post_ffw_norm")
            x = x + hp.residual_scale * y
        head = "output" if "output.weight" in self.tensors else "token_embd"
        z = hp.logit_scale * norm(x, "output_norm") @ w(head).T
        return soft_cap_ref(z, hp.logit_softcap) if hp.logit_softcap > 0 else z

    def loss(self, batch: Batch, params: Mapping[str, np.ndarray], scale: float) -> float:
        """Mean loss over the trained positions of a batch."""
        rows = batch.targets >= 0
        z = self.logits(batch, params, scale)[rows]
        return float(cross_entropy_ref(z, batch.targets[rows]).mean())


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter's arrays as float64 copies, to be varied."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
