"""The whole model in plain numpy, from the reference functions of the op pages: what gradients are
checked against.

Slow and exact: with float64 arrays the loss is good for finite differences. Nothing here is used
for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nbllama.arch import Hparams
from nbllama.data.batch import Batch
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.ops.activation import gated_ref
from nbllama.ops.attention.attention import alibi_slopes, attention_matrices, attention_ref
from nbllama.ops.cross_entropy import cross_entropy_ref
from nbllama.ops.rms_norm import rms_norm_ref
from nbllama.ops.rope import rope_ref
from nbllama.ops.softcap import soft_cap_ref

Seen = Callable[[str, np.ndarray], object]


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

    def logits(
        self,
        batch: Batch,
        params: Mapping[str, np.ndarray],
        scale: float,
        seen: Seen | None = None,
        change: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Logits `[N, V]` of a batch. `seen` gets every activation under llama.cpp's name (see
        `nbllama.peek.names`); `change` is added to those that it names.
        """
        hp, n = self.hp, len(batch.tokens)
        slopes = alibi_slopes(hp.n_head, hp.alibi_max_bias)
        offsets, most = batch.seq_offsets, int(batch.positions.max()) + 1

        def node(name: str, x: np.ndarray) -> np.ndarray:
            if change is not None and name in change:
                x = x + change[name].reshape(x.shape)
            if seen is not None:
                seen(name, x)
            return x

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

        act_name = {"silu": "ffn_swiglu", "gelu": "ffn_geglu"}[hp.activation]
        x = node("inp_embd", hp.embed_scale * w("token_embd")[batch.tokens])
        for i in range(hp.n_layer):
            blk = f"blk.{i}."
            h = node(f"attn_norm-{i}", norm(x, blk + "attn_norm"))
            q = linear(h, i, "q").reshape(n, hp.n_head, hp.head_dim)
            k = linear(h, i, "k").reshape(n, hp.n_head_kv, hp.head_dim)
            v = linear(h, i, "v").reshape(n, hp.n_head_kv, hp.head_dim)
            q, k = node(f"Qcur_raw-{i}", q), node(f"Kcur_raw-{i}", k)
            if hp.has_qk_norm:
                q = node(f"Qcur_normed-{i}", norm(q, blk + "attn_q_norm"))
                k = node(f"Kcur_normed-{i}", norm(k, blk + "attn_k_norm"))
            if hp.alibi_max_bias == 0:
                tables = self._tables(most, i)
                cos: np.ndarray = tables[0].astype(self.dtype)
                sin: np.ndarray = tables[1].astype(self.dtype)
                halves = hp.rope_pairing == "halves"
                q, k = (rope_ref(y, batch.positions, cos, sin, halves) for y in (q, k))
            q, k, v = node(f"Qcur-{i}", q), node(f"Kcur-{i}", k), node(f"Vcur-{i}", v)
            constants = (hp.attn_scale, slopes, hp.window_at(i), hp.attn_softcap)
            if seen is not None:
                matrices = attention_matrices(q, k, offsets, offsets, *constants)
                for name, matrix in zip(("kq", "kq_soft_max"), matrices, strict=True):
                    seen(f"{name}-{i}", matrix)
            att = node(f"kqv_out-{i}", attention_ref(q, k, v, offsets, offsets, *constants))
            y = node(f"attn_out-{i}", linear(att.reshape(n, -1), i, "o"))
            if hp.has_post_norms:
                y = node(f"attn_post_norm-{i}", norm(y, blk + "post_attention_norm"))
            x = node(f"ffn_inp-{i}", x + hp.residual_scale * y)
            h = node(f"ffn_norm-{i}", norm(x, blk + "ffn_norm"))
            gate = node(f"ffn_gate-{i}", linear(h, i, "gate"))
            up = node(f"ffn_up-{i}", linear(h, i, "up"))
            act = node(f"{act_name}-{i}", gated_ref(gate, up, hp.activation == "gelu"))
            y = node(f"ffn_out-{i}", linear(act, i, "down"))
            if hp.has_post_norms:
                y = node(f"ffn_post_norm-{i}", norm(y, blk + "post_ffw_norm"))
            x = node(f"l_out-{i}", x + hp.residual_scale * y)
        head = "output" if "output.weight" in self.tensors else "token_embd"
        x = node("result_norm", hp.logit_scale * norm(x, "output_norm"))
        z = x @ w(head).T
        return node("result_output", soft_cap_ref(z, hp.logit_softcap) if hp.logit_softcap else z)

    def loss(
        self,
        batch: Batch,
        params: Mapping[str, np.ndarray],
        scale: float,
        change: Mapping[str, np.ndarray] | None = None,
    ) -> float:
        """Mean loss over the trained positions of a batch; `change` as in `logits`."""
        rows = batch.targets >= 0
        z = self.logits(batch, params, scale, change=change)[rows]
        return float(cross_entropy_ref(z, batch.targets[rows]).mean())


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """An adapter's arrays as float64 copies, to be varied."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
