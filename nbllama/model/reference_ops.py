"""The operations of the reference model, with their gradients and the LoRA pairs of their tensors.

`nbllama.model.reference` calls the operations in order. Gradients of pairs are added to `grads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nbllama.data.batch import Batch
from nbllama.model.passes import Model
from nbllama.ops.attention.attention import (
    alibi_slopes,
    attention_grad_ref,
    attention_matrices,
    attention_ref,
)
from nbllama.ops.embed import embed_lora_grad_ref, embed_lora_ref
from nbllama.ops.layer_norm import layer_norm_grad_ref, layer_norm_ref
from nbllama.ops.linear.lora import lora_grad_ref, lora_ref
from nbllama.ops.linear.matmul import matmul_grad_ref, matmul_ref
from nbllama.ops.rms_norm import rms_norm_grad_ref, rms_norm_ref
from nbllama.ops.rope import rope_ref
from nbllama.ops.ungated import ungated_grad_ref, ungated_ref

Parameters = Mapping[str, np.ndarray]  # the keys are NAME.lora_a and NAME.lora_b
Seen = Callable[[str, np.ndarray], object]


class ReferenceTensors:
    """All tensors of a model, decoded to `dtype`, and values derived from the model's constants."""

    def __init__(self, model: Model, dtype: type = np.float64) -> None:
        self.hp, self.dtype = model.hp, dtype
        self.tensors: dict[str, np.ndarray] = {
            n: model.tensor(n).astype(dtype)
            for n in (*model.matrices, *model.vectors, *model.experts)
        }
        self.linears, self.rope_tables, self.xielu = model.linears, model.rope_tables, model.xielu


class Operations:
    """The operations of a pass over one batch, and the results computed so far."""

    def __init__(
        self,
        model: ReferenceTensors,
        batch: Batch,
        params: Parameters,
        scale: float,
        *,
        seen: Seen | None = None,
        change: Parameters | None = None,
    ) -> None:
        self.model, self.hp, self.tensors = model, model.hp, model.tensors
        self.batch, self.params, self.scale = batch, params, scale
        self.seen, self.change = seen, change
        self.kept: dict[str, np.ndarray] = {}
        self.grads = {name: np.zeros_like(p) for name, p in params.items()}
        self.lent: dict[int, Any] = {}  # gradients of keys and values that several blocks use
        self.drows: dict[int, np.ndarray] = {}  # gradients of the per-block embeddings
        self.head = "output" if "output.weight" in self.tensors else "token_embd"
        kind = self.hp.activation
        self.gelu = kind == "gelu"
        self.act = ("ffn_geglu" if self.gelu else "ffn_swiglu") if self.hp.gated else f"ffn_{kind}"

    def keep(self, name: str, x: np.ndarray) -> np.ndarray:
        """Store an activation under llama.cpp's name for it, and return it."""
        if self.change is not None and name in self.change:
            x = x + self.change[name].reshape(x.shape)
        if self.seen is not None:
            self.seen(name, x)
        self.kept[name] = x
        return x

    def pair(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the pair (A `[R, n_in]`, B `[n_out, R]`) of a tensor, or None if it has none."""
        key = f"{name}.weight.lora_"
        if key + "a" not in self.params:
            return None
        return self.params[key + "a"], self.params[key + "b"]

    def add_grads(
        self, name: str, da: np.ndarray, db: np.ndarray, rows: slice = slice(None)
    ) -> None:
        """Add da and db to the gradients of a tensor's pair; `rows` selects rows of B."""
        self.grads[f"{name}.weight.lora_a"] += da
        self.grads[f"{name}.weight.lora_b"][rows] += db

    def embed(self) -> np.ndarray:
        """Compute the token embeddings, W[tok] + s B[tok] A."""
        tokens, pair = self.batch.tokens, self.pair("token_embd")
        x: np.ndarray = self.tensors["token_embd.weight"][tokens]
        return x if pair is None else embed_lora_ref(x, tokens, *pair, scale=self.scale)

    def embed_grad(self, dx: np.ndarray) -> None:
        """Add the gradients of the embedding's pair, if there is one."""
        if pair := self.pair("token_embd"):
            da, db = embed_lora_grad_ref(dx, self.batch.tokens, *pair, scale=self.scale)
            self.add_grads("token_embd", da, db)

    def product(self, x: np.ndarray, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Compute x Wᵀ + s (x Aᵀ) Bᵀ, plus the bias; `rows` selects rows of W and B."""
        y = matmul_ref(x, self.tensors[f"{name}.weight"][rows])
        if pair := self.pair(name):
            y = y + lora_ref(x, pair[0], pair[1][rows], self.scale)
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias[rows]

    def product_grad(
        self, dy: np.ndarray, x: np.ndarray, name: str, rows: slice = slice(None)
    ) -> np.ndarray:
        """Return the gradient with respect to x; add dA and dB to the gradients of the pair.

        W is frozen, so its gradient is not used.
        """
        dx, _ = matmul_grad_ref(dy, x, self.tensors[f"{name}.weight"][rows])
        if pair := self.pair(name):
            through, da, db = lora_grad_ref(dy, x, pair[0], pair[1][rows], scale=self.scale)
            self.add_grads(name, da, db, rows)
            dx = dx + through
        return dx

    def linear(self, x: np.ndarray, layer: int, linear: str) -> np.ndarray:
        """Apply a linear layer of a block, such as q, k, v, o, gate, up or down."""
        tensor, rows = self.model.linears[linear]
        return self.product(x, f"blk.{layer}.{tensor}", rows)

    def linear_grad(self, dy: np.ndarray, x: np.ndarray, layer: int, linear: str) -> np.ndarray:
        """Return the gradient of `linear` with respect to x; add the gradients of its pair."""
        tensor, rows = self.model.linears[linear]
        return self.product_grad(dy, x, f"blk.{layer}.{tensor}", rows)

    def norm_weight(self, name: str) -> np.ndarray:
        """Compute the effective weight of a norm, w + s (B A)[0]."""
        w = self.tensors[f"{name}.weight"]
        pair = self.pair(name)
        return w if pair is None else w + self.scale * (pair[1] @ pair[0])[0]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Compute RMSNorm or LayerNorm over the last axis."""
        rows, w = x.reshape(-1, x.shape[-1]), self.norm_weight(name)
        if self.hp.norm == "layer":
            bias = self.tensors.get(f"{name}.bias")
            return layer_norm_ref(rows, w, bias, self.hp.rms_eps).reshape(x.shape)
        return rms_norm_ref(rows, w, self.hp.rms_eps).reshape(x.shape)

    def norm_grad(self, dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
        """Return the gradient of `norm` with respect to x; add the gradients of its pair."""
        rows, w = x.reshape(-1, x.shape[-1]), self.norm_weight(name)
        grad = layer_norm_grad_ref if self.hp.norm == "layer" else rms_norm_grad_ref
        dx, dw = grad(dy.reshape(rows.shape), rows, w, self.hp.rms_eps)
        if pair := self.pair(name):
            a, b = pair
            self.add_grads(name, self.scale * b.T * dw, self.scale * dw[None, :] @ a.T)
        return dx.reshape(x.shape)

    def reads(self, x: np.ndarray, layer: int, norm: str) -> np.ndarray:
        """Return the residual stream x, normalised if `norm` is not empty."""
        return self.norm(x, f"blk.{layer}.{norm}") if norm else x

    def reads_grad(self, dy: np.ndarray, x: np.ndarray, layer: int, norm: str) -> np.ndarray:
        """Return the gradient of `reads` with respect to the residual stream x."""
        return self.norm_grad(dy, x, f"blk.{layer}.{norm}") if norm else dy

    def norm_of_heads(self, x: np.ndarray, name: str) -> np.ndarray:
        """Normalise x `[N, heads, D]` with the norm `name`.

        Depending on the length of the weight, heads are normalised individually or together.
        """
        return self.norm(x.reshape(-1, len(self.norm_weight(name))), name).reshape(x.shape)

    def norm_grad_of_heads(self, dy: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
        """Return the gradient of `norm_of_heads` with respect to x."""
        rows = x.reshape(-1, len(self.norm_weight(name)))
        return self.norm_grad(dy, rows, name).reshape(x.shape)

    def ungated(self, x: np.ndarray, layer: int) -> np.ndarray:
        """Compute act(x) for a feed-forward layer without a gate."""
        return ungated_ref(x, self.hp.activation, self.model.xielu(layer))

    def ungated_grad(self, dy: np.ndarray, x: np.ndarray, layer: int) -> np.ndarray:
        """Return the gradient of `ungated` with respect to x."""
        return ungated_grad_ref(dy, x, self.hp.activation, self.model.xielu(layer))

    def temper(self, q: np.ndarray) -> np.ndarray:
        """Multiply queries, or their gradient, by the temperature at each position."""
        of = self.hp.temperature
        return q if of is None else q * of.at(self.batch.positions)[:, None, None]

    def rotate(self, x: np.ndarray, layer: int, inverse: bool = False) -> np.ndarray:
        """Apply RoPE to x `[N, heads, D]`, if the block has RoPE; with `inverse`, rotate back."""
        positions, halves = self.batch.positions, self.hp.rope_pairing == "halves"
        tables = self.model.rope_tables(int(positions.max()) + 1, layer)
        if tables is None:
            return x
        cos: np.ndarray = tables[0].astype(self.model.dtype)
        sin: np.ndarray = tables[1].astype(self.model.dtype)
        return rope_ref(x, positions, cos, sin, halves=halves, inverse=inverse)

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, layer: int) -> np.ndarray:
        """Compute the outputs `[N, H, D]` of causal attention within each sequence."""
        offsets, constants = self.batch.seq_offsets, self.constants(layer)
        if self.seen is not None:
            matrices = attention_matrices(q, k, q_offsets=offsets, k_offsets=offsets, **constants)
            for name, matrix in zip(("kq", "kq_soft_max"), matrices, strict=True):
                self.seen(f"{name}-{layer}", matrix)
        return attention_ref(q, k, v, q_offsets=offsets, k_offsets=offsets, **constants)

    def attention_grad(
        self, dy: np.ndarray, layer: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return dq, dk and dv of a block's attention, given the gradient of its outputs."""
        of = self.hp.sizes_at(layer).kv_from
        q, k, v = (self.kept[name] for name in (f"q-{layer}", f"k-{of}", f"Vcur-{of}"))
        offsets, constants = self.batch.seq_offsets, self.constants(layer)
        return attention_grad_ref(dy.reshape(q.shape), q, k, v, offsets=offsets, **constants)

    def constants(self, layer: int) -> dict[str, Any]:
        """Return the keyword arguments for a block's attention, except for the arrays."""
        hp, slopes = self.hp, alibi_slopes(self.hp.n_head, self.hp.alibi_max_bias)
        window, cap = hp.window_at(layer), hp.attn_softcap
        sinks = self.tensors.get(f"blk.{layer}.attn_sinks.weight")
        constants = {"scale": hp.attn_scale, "slopes": slopes, "window": window, "cap": cap}
        return constants | {"sinks": sinks}
