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

Params = Mapping[str, np.ndarray]


class ReferenceModel:
    """Every tensor of a model decoded to `dtype`, and its forward pass."""

    def __init__(self, model: Model, dtype: type = np.float64) -> None:
        self.hp: Hparams = model.hp
        self.dtype = dtype
        self.tensors: dict[str, np.ndarray] = {
            n: model.tensor(n).astype(dtype) for n in model.gguf.tensors
        }
        self._tables, self._linears = model.rope_tables, model.linears

    def weight(self, name: str, params: Params, scale: float) -> np.ndarray:
        """Base tensor `name` plus its LoRA delta; `params` by NAME.lora_a and NAME.lora_b."""
        w = self.tensors[name]
        if name + ".lora_a" not in params:
            return w
        delta = params[name + ".lora_b"] @ params[name + ".lora_a"]
        return w + scale * delta.reshape(w.shape)

    def embed(self, batch: Batch, params: Params, scale: float) -> np.ndarray:
        """The stream `[N, C]` before the first block."""
        rows: np.ndarray = self.weight("token_embd.weight", params, scale)[batch.tokens]
        return self.hp.embed_scale * rows

    def block(
        self, layer: int, x: np.ndarray, batch: Batch, params: Params, scale: float
    ) -> np.ndarray:
        """The stream `[N, C]` after block `layer`, from the one before it."""
        hp, n, blk = self.hp, len(batch.tokens), f"blk.{layer}."

        def linear(x: np.ndarray, slot: str) -> np.ndarray:
            tensor, rows = self._linears[slot]
            y: np.ndarray = x @ self.weight(f"{blk}{tensor}.weight", params, scale)[rows].T
            bias = f"{blk}{tensor}.bias"
            return y + self.tensors[bias][rows] if bias in self.tensors else y

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            return self._norm(x, blk + name, params, scale)

        h = norm(x, "attn_norm")
        q = linear(h, "q").reshape(n, hp.n_head, hp.head_dim)
        k = linear(h, "k").reshape(n, hp.n_head_kv, hp.head_dim)
        v = linear(h, "v").reshape(n, hp.n_head_kv, hp.head_dim)
        q, k = norm(q, "attn_q_norm"), norm(k, "attn_k_norm")
        if hp.alibi_max_bias == 0:
            tables = self._tables(int(batch.positions.max()) + 1, layer)
            cos, sin = (table.astype(self.dtype) for table in tables)
            halves = hp.rope_pairing == "halves"
            q, k = (rope_ref(y, batch.positions, cos, sin, halves) for y in (q, k))
        att = attention_ref(
            q, k, v, batch.seq_offsets, batch.seq_offsets, hp.attn_scale,
            alibi_slopes(hp.n_head, hp.alibi_max_bias), hp.window_at(layer), hp.attn_softcap,
        ).reshape(n, -1)  # fmt: skip
        x = x + hp.residual_scale * norm(linear(att, "o"), "post_attention_norm")
        h = norm(x, "ffn_norm")
        act = gated_ref(linear(h, "gate"), linear(h, "up"), hp.activation == "gelu")
        return x + hp.residual_scale * norm(linear(act, "down"), "post_ffw_norm")

    def head(self, x: np.ndarray, params: Params, scale: float) -> np.ndarray:
        """Logits `[N, V]` from the stream after the last block."""
        name = "output" if "output.weight" in self.tensors else "token_embd"
        h = self._norm(x, "output_norm", params, scale)
        z: np.ndarray = self.hp.logit_scale * h @ self.weight(f"{name}.weight", params, scale).T
        return soft_cap_ref(z, self.hp.logit_softcap) if self.hp.logit_softcap > 0 else z

    def _norm(self, x: np.ndarray, name: str, params: Params, scale: float) -> np.ndarray:
        """The norm, where the model has it."""
        if f"{name}.weight" not in self.tensors:
            return x
        w = self.weight(f"{name}.weight", params, scale)
        return rms_norm_ref(x.reshape(-1, x.shape[-1]), w, self.hp.rms_eps).reshape(x.shape)

    def streams(self, batch: Batch, params: Params, scale: float) -> list[np.ndarray]:
        """The stream before every block, and after the last one."""
        out = [self.embed(batch, params, scale)]
        for layer in range(self.hp.n_layer):
            out.append(self.block(layer, out[-1], batch, params, scale))
        return out

    def logits(self, batch: Batch, params: Params, scale: float) -> np.ndarray:
        """Logits `[N, V]` of a batch."""
        return self.head(self.streams(batch, params, scale)[-1], params, scale)

    def loss(
        self,
        batch: Batch,
        params: Params,
        scale: float,
        start: tuple[int, np.ndarray] | None = None,
    ) -> float:
        """Mean loss over the trained positions of a batch.

        `start`: (layer, the stream before it), where the blocks below are not to be run again.
        """
        layer, x = start or (0, self.embed(batch, params, scale))
        for i in range(layer, self.hp.n_layer):
            x = self.block(i, x, batch, params, scale)
        rows = batch.targets >= 0
        z = self.head(x[rows], params, scale)
        return float(cross_entropy_ref(z, batch.targets[rows]).mean())


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter's arrays as float64 copies, to be varied."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
