"""One block of the model, forward and backward: attention and feed-forward.

Attention and feed-forward read the residual stream (in most models, a normalised copy) and add
their outputs to the stream. `Hparams` specifies how models differ in these steps:

| step | differences |
|---|---|
| `reads` | the norm of the input, if any; whether feed-forward reads the same input as attention |
| `heads` | norms of queries and keys, before or after RoPE, per head or over all heads; RoPE |
| `attention` | scale, ALiBi, window and soft-cap of the scores; temperature of the queries |
| `activation` | the function, with or without a gate |
| `feed_forward` | one layer, or a mixture of experts (`nbllama.model.mixture`) |
| `values` | a norm of the values; whether a block uses the keys and values of an earlier block |
| `branch` | norm and scale of the output that is added to the stream |

There are three implementations of a block. This module is used for training and processes many
tokens, forward and backward. `nbllama.generation.token_program`, which uses the kernels in
`nbllama.ops.token`, processes a single token and is optimised for speed. `nbllama.model.reference`
implements each operation in one line of plain float64 numpy, and tests compare the other two
implementations with it. If you change one implementation, change all three.

In shapes, N is the number of tokens, C is n_embd, H is n_head, G is n_head_kv, D is head_dim, and F
is n_ff. The forward pass saves a `BlockSet` (`nbllama.model.activations`) for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nbllama.data.batch import Batch
from nbllama.lora.slots import LINEARS
from nbllama.model import per_layer, varied
from nbllama.model.activations import Activations
from nbllama.model.attending import attend, attend_grad
from nbllama.model.bound import Bound
from nbllama.model.mixers import MIXERS, StateExchange
from nbllama.model.mixture import Mixture
from nbllama.model.parts import BlockParts
from nbllama.model.weights import Weights
from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.attention.sinks import add_sinks
from nbllama.ops.linear.linear import Input
from nbllama.ops.out_gate import out_gate, out_gate_grad
from nbllama.ops.ungated import ungated, ungated_grad

# Norms that occur only in some models, by the layer that they follow. LoRA cannot train them.
QK_NORMS = {"q": "attn_q_norm.weight", "k": "attn_k_norm.weight"}

# llama.cpp's names for the results, which are passed to a watcher (`nbllama.model.watching`).
GATED_NODES = {"silu": "ffn_swiglu", "gelu": "ffn_geglu"}

CacheExchange = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A function that receives a layer and its new keys and values `[N, G, D]`.

It returns all keys and values of the layer, including those of earlier tokens.
"""


def block_forward(
    model: Weights,
    layer: int,
    bound: Bound,
    acts: Activations,
    *,
    batch: Batch,
    recompute: bool = False,
    cache: CacheExchange | None = None,
    k_offsets: np.ndarray | None = None,
    states: StateExchange | None = None,
) -> None:
    """Run block `layer`: read acts.x(layer), write acts.x(layer + 1), and save a `BlockSet`.

    With `recompute`, stop as soon as everything that the backward pass reads has been computed.
    With `cache`, `k_offsets` `[S+1]` are the offsets of the keys that the cache returns. For
    blocks without attention, `states` returns the states of the sequences.
    """
    block = Block(model, layer, bound, acts, batch=batch)
    if recompute:
        block.watch = None  # the first forward pass has already reported the results
    if mixer := MIXERS.get(model.hp.mixer_at(layer)):
        mixer.forward(block, states)
    else:
        block.attention_forward(cache, batch.seq_offsets if k_offsets is None else k_offsets)
    block.feed_forward(recompute)


def block_backward(
    model: Weights, layer: int, bound: Bound, acts: Activations, *, batch: Batch, lowest: int
) -> None:
    """Run block `layer` backward: replace the output gradient in acts.dx with the input gradient.

    `lowest` is the lowest block with trained parameters. In this block, gradients that only lower
    blocks would use are not computed.
    """
    block = Block(model, layer, bound, acts, batch=batch)
    block.feed_forward_backward()
    below = layer > lowest or bound.trains("token_embd.weight")
    if mixer := MIXERS.get(model.hp.mixer_at(layer)):
        mixer.backward(block, below)
    else:
        block.attention_backward(below)


class Block(BlockParts):
    """One block, applied to one batch: attention (or its alternative) and feed-forward."""

    def __init__(
        self, model: Weights, layer: int, bound: Bound, acts: Activations, *, batch: Batch
    ) -> None:
        super().__init__(model, layer, bound, acts, batch=batch)
        kind = self.hp.activation
        experts = self.hp.experts_at(layer)
        self.mixture = None if experts is None else Mixture(self, experts)
        if self.mixture is None and self.hp.experts is not None:  # a dense block can be narrower
            for name in ("gate", "up"):
                setattr(self.kept, name, self.dense(getattr(self.kept, name)))
        self.act_node = GATED_NODES[kind] if self.hp.gated else f"ffn_{kind}"

    # Attention

    def heads(self, name: str, x: Input, y: np.ndarray) -> None:
        """Compute queries or keys y `[N, heads, D]` from x, including any norm and RoPE."""
        node = LINEARS[name].node
        raw = self.kept.norms[name] if self.hp.has_qk_norm else y
        if name == "q" and self.hp.attn_gate:
            self.project(name, x, self.kept.mixed["q_gate"])
            raw[:] = self.kept.mixed["q_gate"][:, :, 0]
        else:
            self.project(name, x, raw)
        self.see(f"{node}_raw", raw)
        if self.hp.qk_norm_last:
            self.turn(node, raw)
        if self.hp.has_qk_norm:
            norm, rows, rstd = self.norm_of_heads(name, raw)
            self.bound.normed(norm, rows, y.reshape(rows.shape), rstd)
            self.see(f"{node}_normed", y)
        if not self.hp.qk_norm_last:
            self.turn(node, y)

    def heads_grad(self, name: str, dy: np.ndarray) -> None:
        """Replace dy `[N, heads, D]` with the gradient of the projection's output."""
        node = LINEARS[name].node
        if not self.hp.qk_norm_last:
            self.turn_grad(node, dy)
        if self.hp.has_qk_norm:
            self.see_grad(f"{node}_normed", dy)
            norm, rows, rstd = self.norm_of_heads(name, self.kept.norms[name])
            d = dy.reshape(rows.shape)
            self.bound.normed_grad(norm, d, rows, rstd, dx=d)
        if self.hp.qk_norm_last:
            self.turn_grad(node, dy)
        self.see_grad(f"{node}_raw", dy)

    def turn(self, node: str, y: np.ndarray) -> None:
        """Apply RoPE to y `[N, heads, D]` in place."""
        self.model.rotate(self.layer, y, self.batch.positions)
        self.see(node, y)

    def turn_grad(self, node: str, dy: np.ndarray) -> None:
        """Rotate the gradient dy `[N, heads, D]` back, in place."""
        self.see_grad(node, dy)
        self.model.rotate(self.layer, dy, self.batch.positions, inverse=True)

    def norm_of_heads(self, name: str, x: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
        """Return the name of the norm, x reshaped to rows, and rstd.

        A row contains one head or all heads, depending on the length of the norm's weight.
        """
        norm = self.name(QK_NORMS[name])
        rows = x.reshape(-1, len(self.model.vectors[norm]))
        return norm, rows, self.kept.norms[f"rstd_{name}"].reshape(-1)[: len(rows)]

    def attention_forward(self, cache: CacheExchange | None, k_offsets: np.ndarray) -> None:
        """Run attention; write the stream between attention and feed-forward to `kept.x_mid`."""
        kept, n = self.kept, self.n
        x = self.acts.x(self.layer, n)
        read = self.reads(x, self.hp.attn_norm, kept.rstd_att)
        if self.hp.attn_norm:
            self.see("attn_norm", read)
        source = self.input(read, *(name for name in ("q", "k", "v") if name in self.pairs))
        self.heads("q", source, kept.q)
        if self.sizes.kv_from == self.layer:
            self.heads("k", source, kept.k)
            varied.values(self, source, kept.v)
            self.see("Vcur", kept.v)
        self.model.temper(kept.q, self.batch.positions)
        keys, values = kept.k, kept.v
        if cache is not None:
            keys, values = cache(self.sizes.kv_from, keys, values)
        attend(
            self.batch, kept.q, keys, values, k_offsets=k_offsets, scale=self.hp.attn_scale,
            slopes=self.model.slopes, o=kept.att, lse=kept.lse,
            window=self.hp.window_at(self.layer), cap=self.hp.attn_softcap,
        )  # fmt: skip
        if (sinks := self.model.vectors.get(self.name("attn_sinks.weight"))) is not None:
            add_sinks(kept.att, kept.lse, sinks)
        if self.watch is not None:
            offsets = {"q_offsets": self.batch.seq_offsets, "k_offsets": k_offsets}
            self.watch.attention(self.layer, kept.q, keys, **offsets)
        self.see("kqv_out", kept.att)
        att = self.gated_att()
        if self.hp.attn_gate:
            self.see("attn_gated", att)
        kept.x_mid[:] = x
        self.branch("o", self.input(att.reshape(n, -1), "o"), kept.x_mid)
        self.see("ffn_inp", kept.x_mid)

    def gated_att(self) -> np.ndarray:
        """Return the attention output `[N, H, D]`, multiplied by its gates, if any."""
        if not self.hp.attn_gate:
            return self.kept.att
        y = self.shared("att_gated")
        out_gate(self.kept.att, self.kept.mixed["q_gate"], y)
        return y

    def attention_backward(self, below: bool) -> None:
        """Replace the gradient of `x_mid` in acts.dx with the gradient of the block's input.

        Without `below`, only the gradients of this block's pairs are computed.
        """
        kept, n = self.kept, self.n
        side_by_side = self.hp.side_by_side  # if true, dnorm contains feed-forward's gradient
        norm_trained = self.bound.trains(self.name("attn_norm.weight"))
        if not (below or norm_trained or self.trains("q", "k", "v", "o")):
            return
        dx, datt, dnorm = self.shared("dx"), self.shared("datt"), self.shared("dnorm")
        dq, dk, dv = self.shared("dq"), self.shared("dk"), self.shared("dv")
        read = self.gated_att().reshape(n, -1)
        self.project_grad("o", self.branch_grad("o", dx), read, datt)
        if self.hp.attn_gate:
            self.see_grad("attn_gated", datt)
            out_gate_grad(datt, kept.att, kept.mixed["q_gate"], self.shared("dq_gate"))
        self.see_grad("kqv_out", datt)
        attend_grad(
            self.batch, datt, q=kept.q, k=kept.k, v=kept.v, o=kept.att, lse=kept.lse,
            scale=self.hp.attn_scale, slopes=self.model.slopes, dq=dq, dk=dk, dv=dv,
            window=self.hp.window_at(self.layer), cap=self.hp.attn_softcap,
        )  # fmt: skip
        own_keys = varied.collect(self, dk, dv)
        self.model.temper(dq, self.batch.positions)
        self.heads_grad("q", dq)
        if own_keys:
            self.see_grad("Vcur", dv)
            self.heads_grad("k", dk)
            if self.hp.values_normed:
                varied.values_grad(self, dv, dk)
        if self.hp.attn_gate:
            self.shared("dq_gate")[:, :, 0] = dq
            dq = self.shared("dq_gate")
        x = self.acts.x(self.layer, n)
        read = self.reads(x, self.hp.attn_norm, kept.rstd_att)
        out = dnorm if below or norm_trained else None
        self.project_grad("q", dq, read, out, add=side_by_side)
        for name, d in (("k", dk), ("v", dv)):
            if own_keys and name in self.pairs:
                self.project_grad(name, d, read, out, add=True)
        if out is not None:
            self.see_grad("attn_norm", out)
            self.reads_grad(out, x, self.hp.attn_norm, kept.rstd_att, dx=dx if below else None)

    # Feed-forward

    def activation(self) -> np.ndarray:
        """Compute act(gate) * up `[N, F]`, or act(up) without a gate, in shared memory."""
        act, kind = self.dense(self.shared("act")), self.hp.activation
        if self.hp.gated:
            gated(self.kept.gate, self.kept.up, act, gelu=kind == "gelu")
        else:
            ungated(self.kept.up, act, kind=kind, numbers=self.model.xielu(self.layer))
        return act

    def activation_grad(self, dact: np.ndarray) -> None:
        """Overwrite `kept.gate` and `kept.up` with their gradients.

        dact is the gradient of the result of `activation`.
        """
        kind = self.hp.activation
        if self.hp.gated:
            gated_grad(dact, self.kept.gate, self.kept.up, gelu=kind == "gelu")
            self.see_grad("ffn_gate", self.kept.gate)
        else:
            ungated_grad(dact, self.kept.up, kind=kind, numbers=self.model.xielu(self.layer))
        self.see_grad("ffn_up", self.kept.up)

    def feed_forward(self, recompute: bool) -> None:
        """Compute the block's output; with `recompute`, compute only what the gradient requires."""
        if self.mixture is not None:
            self.mixture.forward(recompute)
            return
        kept, hp = self.kept, self.hp
        read = self.reads(*self.source())
        if hp.ffn_norm and not hp.side_by_side:
            self.see("ffn_norm", read)
        if hp.gated:
            source = self.input(read, "gate", "up")
            self.project("gate", source, kept.gate)
            self.see("ffn_gate", kept.gate)
        else:
            source = self.input(read, "up")
        self.project("up", source, kept.up)
        self.see("ffn_up", kept.up)
        act = self.activation()
        self.see(self.act_node, act)
        source, pair = self.input(act, "down"), self.pairs["down"]
        if recompute and not hp.has_post_norms:
            if pair is not None:
                kept.h["down"] = source.hidden(pair, kept.h_memory.get("down"))
            return
        out = self.acts.x(self.layer + 1, self.n)
        out[:] = kept.x_mid
        self.branch("down", source, out)
        per_layer.forward(self, out)
        self.see("l_out", out)

    def feed_forward_backward(self) -> None:
        """Replace the gradient of the block's output in acts.dx with the gradient of `x_mid`."""
        kept, hp = self.kept, self.hp
        dx, dnorm = self.shared("dx"), self.shared("dnorm")
        self.see_grad("l_out", dx)
        per_layer.backward(self, dx)
        x, norm, rstd = self.source()
        if self.mixture is not None:
            self.mixture.backward(dx, dnorm)
        else:
            dact = self.dense(self.shared("dact"))
            self.project_grad("down", self.branch_grad("down", dx), self.activation(), dact)
            self.see_grad(self.act_node, dact)
            self.activation_grad(dact)
            read = self.reads(x, norm, rstd)
            if hp.gated:
                self.project_grad("gate", kept.gate, read, dnorm)
            self.project_grad("up", kept.up, read, dnorm, add=hp.gated)
        if not hp.side_by_side:  # otherwise, attention first adds its gradient to dnorm
            self.see_grad("ffn_norm", dnorm)
            self.reads_grad(dnorm, x, norm, rstd, dx=dx)
        self.see_grad("ffn_inp", dx)
