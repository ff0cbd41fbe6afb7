"""The whole model on one page: forward pass, loss and backward pass in plain float64 numpy.

One operation a line, in order; `_Pass.forward` and `_Pass.backward` are the page to read. Every
operation and its gradient is the plain-numpy function of its page in `nbllama.ops`, where formula
and derivative are. Nothing here is used for training: it is slow and exact, and what the kernels'
passes (`nbllama.model.block`, `nbllama.model.passes`) are checked against. Its own gradients are
checked against finite differences of its loss (tests/model/test_reference.py).

Shapes: N tokens (all sequences end to end), C n_embd, H n_head, G n_head_kv, D head_dim, F n_ff,
V n_vocab. `dx` is the gradient of the mean loss with respect to x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nbllama.data.batch import Batch
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.ops.activation import gated_grad_ref, gated_ref
from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention_grad_ref,
    attention_matrices,
    attention_ref,
)
from nbllama.ops.cross_entropy import cross_entropy_grad_ref, cross_entropy_ref
from nbllama.ops.embed import embed_lora_grad_ref, embed_lora_ref
from nbllama.ops.linear.lora import lora_grad_ref, lora_ref
from nbllama.ops.linear.matmul import matmul_grad_ref, matmul_ref
from nbllama.ops.rms_norm import rms_norm_grad_ref, rms_norm_ref
from nbllama.ops.rope import rope_ref
from nbllama.ops.softcap import soft_cap_grad_ref, soft_cap_ref

Parameters = Mapping[str, np.ndarray]  # by NAME.lora_a and NAME.lora_b
Seen = Callable[[str, np.ndarray], object]


class ReferenceModel:
    """Every tensor of a model decoded to `dtype`; `scale` below is alpha / lora_r."""

    def __init__(self, model: Model, dtype: type = np.float64) -> None:
        self.hp, self.dtype = model.hp, dtype
        self.tensors: dict[str, np.ndarray] = {
            n: model.tensor(n).astype(dtype) for n in model.gguf.tensors
        }
        self.linears, self.rope_tables = model.linears, model.rope_tables

    def logits(
        self,
        batch: Batch,
        params: Parameters,
        scale: float,
        *,
        seen: Seen | None = None,
        change: Parameters | None = None,
    ) -> np.ndarray:
        """Compute logits `[N, V]`; `change` is added to activations, which `seen` gets by name."""
        return _Pass(self, batch, params, scale, seen, change).forward()

    def loss(
        self, batch: Batch, params: Parameters, scale: float, change: Parameters | None = None
    ) -> float:
        """Mean loss over the trained positions of a batch; `change` as in `logits`."""
        z = self.logits(batch, params, scale, change=change)
        return _mean_loss(z, batch)

    def loss_and_gradients(
        self, batch: Batch, params: Parameters, scale: float
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss, and its gradient with respect to every array of `params`."""
        run = _Pass(self, batch, params, scale)
        loss = _mean_loss(run.forward(), batch)
        run.backward()
        return loss, run.grads


def _mean_loss(z: np.ndarray, batch: Batch) -> float:
    rows = batch.targets >= 0
    return float(cross_entropy_ref(z[rows], batch.targets[rows]).mean())


class _Pass:
    """One forward pass, with all that it computed in `kept`, and one backward pass."""

    def __init__(
        self,
        model: ReferenceModel,
        batch: Batch,
        params: Parameters,
        scale: float,
        seen: Seen | None = None,
        change: Parameters | None = None,
    ) -> None:
        self.model, self.hp, self.tensors = model, model.hp, model.tensors
        self.batch, self.params, self.scale = batch, params, scale
        self.seen, self.change = seen, change
        self.kept: dict[str, np.ndarray] = {}
        self.grads = {name: np.zeros_like(p) for name, p in params.items()}
        self.head = "output" if "output.weight" in self.tensors else "token_embd"
        self.act = {"silu": "ffn_swiglu", "gelu": "ffn_geglu"}[self.hp.activation]
        self.gelu = self.hp.activation == "gelu"

    def forward(self) -> np.ndarray:
        """Logits `[N, V]`."""
        hp, keep, n = self.hp, self.keep, len(self.batch.tokens)
        x = keep("inp_embd", hp.embed_scale * self.embed())
        for i in range(hp.n_layer):
            # attention, on a normed copy of the stream x [N, C]
            h = keep(f"attn_norm-{i}", self.norm(x, f"blk.{i}.attn_norm"))
            q = keep(f"Qcur_raw-{i}", self.linear(h, i, "q").reshape(n, hp.n_head, hp.head_dim))
            k = keep(f"Kcur_raw-{i}", self.linear(h, i, "k").reshape(n, hp.n_head_kv, hp.head_dim))
            v = keep(f"Vcur-{i}", self.linear(h, i, "v").reshape(n, hp.n_head_kv, hp.head_dim))
            if hp.has_qk_norm:
                q = keep(f"Qcur_normed-{i}", self.norm(q, f"blk.{i}.attn_q_norm"))
                k = keep(f"Kcur_normed-{i}", self.norm(k, f"blk.{i}.attn_k_norm"))
            q = keep(f"Qcur-{i}", self.rotate(q, i))
            k = keep(f"Kcur-{i}", self.rotate(k, i))
            att = keep(f"kqv_out-{i}", self.attention(q, k, v, i))
            y = keep(f"attn_out-{i}", self.linear(att.reshape(n, -1), i, "o"))
            if hp.has_post_norms:
                y = keep(f"attn_post_norm-{i}", self.norm(y, f"blk.{i}.post_attention_norm"))
            x = keep(f"ffn_inp-{i}", x + hp.residual_scale * y)
            # feed-forward
            h = keep(f"ffn_norm-{i}", self.norm(x, f"blk.{i}.ffn_norm"))
            gate = keep(f"ffn_gate-{i}", self.linear(h, i, "gate"))
            up = keep(f"ffn_up-{i}", self.linear(h, i, "up"))
            act = keep(f"{self.act}-{i}", gated_ref(gate, up, self.gelu))
            y = keep(f"ffn_out-{i}", self.linear(act, i, "down"))
            if hp.has_post_norms:
                y = keep(f"ffn_post_norm-{i}", self.norm(y, f"blk.{i}.post_ffw_norm"))
            x = keep(f"l_out-{i}", x + hp.residual_scale * y)
        h = keep("result_norm", hp.logit_scale * self.norm(x, "output_norm"))
        z = self.kept["raw logits"] = self.product(h, self.head)
        if hp.logit_softcap:
            z = soft_cap_ref(z, hp.logit_softcap)
        return keep("result_output", z)

    def backward(self) -> None:
        """Gradients of the mean loss into `grads`: the lines of `forward` from the last one up."""
        hp, kept, n = self.hp, self.kept, len(self.batch.tokens)
        rows = self.batch.targets >= 0
        z, dz = kept["result_output"], np.zeros_like(kept["result_output"])
        dz[rows] = cross_entropy_grad_ref(1 / rows.sum(), z[rows], self.batch.targets[rows])
        if hp.logit_softcap:
            dz = soft_cap_grad_ref(dz, kept["raw logits"], hp.logit_softcap)
        dh = self.product_grad(dz, kept["result_norm"], self.head)
        dx = self.norm_grad(hp.logit_scale * dh, kept[f"l_out-{hp.n_layer - 1}"], "output_norm")
        for i in reversed(range(hp.n_layer)):
            # feed-forward; dx goes on to the stream's earlier part, and through the branch
            dy = hp.residual_scale * dx
            if hp.has_post_norms:
                dy = self.norm_grad(dy, kept[f"ffn_out-{i}"], f"blk.{i}.post_ffw_norm")
            dact = self.linear_grad(dy, kept[f"{self.act}-{i}"], i, "down")
            gate, up = kept[f"ffn_gate-{i}"], kept[f"ffn_up-{i}"]
            dgate, dup = gated_grad_ref(dact, gate, up, self.gelu)
            dh = self.linear_grad(dup, kept[f"ffn_norm-{i}"], i, "up")
            dh += self.linear_grad(dgate, kept[f"ffn_norm-{i}"], i, "gate")
            dx = dx + self.norm_grad(dh, kept[f"ffn_inp-{i}"], f"blk.{i}.ffn_norm")
            # attention
            dy = hp.residual_scale * dx
            if hp.has_post_norms:
                dy = self.norm_grad(dy, kept[f"attn_out-{i}"], f"blk.{i}.post_attention_norm")
            datt = self.linear_grad(dy, kept[f"kqv_out-{i}"].reshape(n, -1), i, "o")
            dq, dk, dv = self.attention_grad(datt, i)
            dk = self.rotate(dk, i, inverse=True)
            dq = self.rotate(dq, i, inverse=True)
            if hp.has_qk_norm:
                dk = self.norm_grad(dk, kept[f"Kcur_raw-{i}"], f"blk.{i}.attn_k_norm")
                dq = self.norm_grad(dq, kept[f"Qcur_raw-{i}"], f"blk.{i}.attn_q_norm")
            dh = self.linear_grad(dv.reshape(n, -1), kept[f"attn_norm-{i}"], i, "v")
            dh += self.linear_grad(dk.reshape(n, -1), kept[f"attn_norm-{i}"], i, "k")
            dh += self.linear_grad(dq.reshape(n, -1), kept[f"attn_norm-{i}"], i, "q")
            x = kept[f"l_out-{i - 1}" if i else "inp_embd"]
            dx = dx + self.norm_grad(dh, x, f"blk.{i}.attn_norm")
        self.embed_grad(hp.embed_scale * dx)

    # The operations, with the LoRA pair (A, B) of a tensor where it has one

    def keep(self, name: str, x: np.ndarray) -> np.ndarray:
        """Remember an activation under llama.cpp's name."""
        if self.change is not None and name in self.change:
            x = x + self.change[name].reshape(x.shape)
        if self.seen is not None:
            self.seen(name, x)
        self.kept[name] = x
        return x

    def pair(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (A `[R, n_in]`, B `[n_out, R]`) of a tensor."""
        key = f"{name}.weight.lora_"
        if key + "a" not in self.params:
            return None
        return self.params[key + "a"], self.params[key + "b"]

    def add_grads(
        self, name: str, da: np.ndarray, db: np.ndarray, rows: slice = slice(None)
    ) -> None:
        self.grads[f"{name}.weight.lora_a"] += da
        self.grads[f"{name}.weight.lora_b"][rows] += db

    def embed(self) -> np.ndarray:
        """W[tok] + s B[tok] A."""
        tokens, pair = self.batch.tokens, self.pair("token_embd")
        x: np.ndarray = self.tensors["token_embd.weight"][tokens]
        return x if pair is None else embed_lora_ref(x, tokens, *pair, scale=self.scale)

    def embed_grad(self, dx: np.ndarray) -> None:
        if pair := self.pair("token_embd"):
            da, db = embed_lora_grad_ref(dx, self.batch.tokens, *pair, scale=self.scale)
            self.add_grads("token_embd", da, db)

    def product(self, x: np.ndarray, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Compute x Wᵀ + s (x Aᵀ) Bᵀ, plus the bias; `rows` of W and B of a part of a tensor."""
        y = matmul_ref(x, self.tensors[f"{name}.weight"][rows])
        if pair := self.pair(name):
            y = y + lora_ref(x, pair[0], pair[1][rows], self.scale)
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias[rows]

    def product_grad(
        self, dy: np.ndarray, x: np.ndarray, name: str, rows: slice = slice(None)
    ) -> np.ndarray:
        """dx, and the pair's dA and dB. W is frozen: its own gradient is not used."""
        dx, _ = matmul_grad_ref(dy, x, self.tensors[f"{name}.weight"][rows])
        if pair := self.pair(name):
            through, da, db = lora_grad_ref(dy, x, pair[0], pair[1][rows], scale=self.scale)
            self.add_grads(name, da, db, rows)
            dx = dx + through
        return dx

    def linear(self, x: np.ndarray, layer: int, linear: str) -> np.ndarray:
        """Apply a linear layer of a block: q, k, v, o, gate, up or down."""
        tensor, rows = self.model.linears[linear]
        return self.product(x, f"blk.{layer}.{tensor}", rows)

    def linear_grad(self, dy: np.ndarray, x: np.ndarray, layer: int, linear: str) -> np.ndarray:
        tensor, rows = self.model.linears[linear]
        return self.product_grad(dy, x, f"blk.{layer}.{tensor}", rows)

    def norm_weight(self, name: str) -> np.ndarray:
        """Compute w + s (B A)[0]."""
        w = self.tensors[f"{name}.weight"]
        pair = self.pair(name)
        return w if pair is None else w + self.scale * (pair[1] @ pair[0])[0]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm of the last axis."""
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm_ref(rows, self.norm_weight(name), self.hp.rms_eps).reshape(x.shape)

    def norm_grad(self, dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
        rows, w = x.reshape(-1, x.shape[-1]), self.norm_weight(name)
        dx, dw = rms_norm_grad_ref(dy.reshape(rows.shape), rows, w, self.hp.rms_eps)
        if pair := self.pair(name):
            a, b = pair
            self.add_grads(name, self.scale * b.T * dw, self.scale * dw[None, :] @ a.T)
        return dx.reshape(x.shape)

    def rotate(self, x: np.ndarray, layer: int, inverse: bool = False) -> np.ndarray:
        """RoPE of x `[N, heads, D]`, unless positions come in by ALiBi; its gradient turns back."""
        if self.hp.alibi_max_bias:
            return x
        positions, halves = self.batch.positions, self.hp.rope_pairing == "halves"
        tables = self.model.rope_tables(int(positions.max()) + 1, layer)
        cos: np.ndarray = tables[0].astype(self.model.dtype)
        sin: np.ndarray = tables[1].astype(self.model.dtype)
        return rope_ref(x, positions, cos, sin, halves=halves, inverse=inverse)

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, layer: int) -> np.ndarray:
        """Compute outputs `[N, H, D]`; each sequence sees itself, up to each token."""
        offsets, constants = self.batch.seq_offsets, self.constants(layer)
        if self.seen is not None:
            matrices = attention_matrices(q, k, q_offsets=offsets, k_offsets=offsets, **constants)
            for name, matrix in zip(("kq", "kq_soft_max"), matrices, strict=True):
                self.seen(f"{name}-{layer}", matrix)
        return attention_ref(q, k, v, q_offsets=offsets, k_offsets=offsets, **constants)

    def attention_grad(
        self, dy: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v = (self.kept[f"{name}-{layer}"] for name in ("Qcur", "Kcur", "Vcur"))
        offsets, constants = self.batch.seq_offsets, self.constants(layer)
        return attention_grad_ref(dy.reshape(q.shape), q, k, v, offsets=offsets, **constants)

    def constants(self, layer: int) -> dict[str, Any]:
        """Return the keyword arguments of a block's attention that are not its arrays."""
        hp, slopes = self.hp, alibi_slopes(self.hp.n_head, self.hp.alibi_max_bias)
        window, cap = hp.window_at(layer), hp.attn_softcap
        return {"scale": hp.attn_scale, "slopes": slopes, "window": window, "cap": cap}


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """Return an adapter's arrays as float64 copies, to be varied."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
