"""The model: weights as they lie in the GGUF, the forward pass, the loss, and the backward pass.

The order of operations is that of finetune.cpp's graph (t01 embeddings .. t36 loss). Activations
are a stream: all sequences of a micro-batch end to end, `[N, C]` float32. Base weights are never
changed and never decoded whole.

Shapes: N tokens, C n_embd, H n_head, G n_head_kv, D head_dim, F n_ff, V n_vocab, M trained
positions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property

import numpy as np

from nbllama.activations import LINEARS, Activations
from nbllama.arch import Hparams, hparams_from_gguf, with_overrides
from nbllama.data.batch import Batch
from nbllama.errors import CheckpointError
from nbllama.gguf_io import GGUFFile, open_gguf
from nbllama.lora import Adapter
from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.attention import alibi_slopes, attention
from nbllama.ops.attention_grad import attention_grad
from nbllama.ops.embed import embed, embed_lora, embed_lora_grad
from nbllama.ops.linear import Input, LoraPair, linear, linear_grad
from nbllama.ops.loss import LossBuffers, output_loss
from nbllama.ops.matmul import Weight
from nbllama.ops.panels import NO_PANELS
from nbllama.ops.rms_norm import rms_norm, rms_norm_grad, rms_norm_grad_weight
from nbllama.ops.rope import rope, rope_tables
from nbllama.quants import as_readonly, check_finite, decode
from nbllama.text import Tokenizer, tokenizer_from_gguf
from nbllama.text.chat_template import ChatTemplate, chat_template_for


class Bound:
    """An adapter at work on a model: pairs by tensor name, effective norms, and gradients by
    parameter name.
    """

    def __init__(self, model: Model, adapter: Adapter | None, trained: bool = False) -> None:
        """Raises `CheckpointError` for an adapter whose shapes are not the model's."""
        if adapter is not None and (problem := adapter.misfit(model.shapes)):
            raise CheckpointError(f"the adapter is for another model: {problem}")
        self._model = model
        self.adapter = adapter
        self.grads: dict[str, np.ndarray] = {}
        if adapter is not None and trained:
            self.grads = {k: np.zeros_like(p) for k, p in adapter.parameters().items()}
        self._norms: dict[str, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> None:
        """Recompute what depends on the adapter's values: call it after every optimiser step."""
        self._norms = {}
        if self.adapter is not None:
            for name, pair in self.adapter.pairs.items():
                if name in self._model.vectors:
                    delta = np.float32(self.adapter.scale) * (pair.b[0][:, None] * pair.a).sum(
                        axis=0
                    )
                    self._norms[name] = self._model.vectors[name] + delta

    def zero_grads(self) -> None:
        for g in self.grads.values():
            g.fill(0)

    def norm(self, name: str) -> np.ndarray:
        """Norm weight `[C]` with its LoRA delta."""
        return self._norms.get(name, self._model.vectors[name])

    def pair(self, name: str) -> LoraPair | None:
        """The pair of a matrix, with the arrays of its gradients."""
        if self.adapter is None or (found := self.adapter.pairs.get(name)) is None:
            return None
        da, db = self.grads.get(name + ".lora_a"), self.grads.get(name + ".lora_b")
        return LoraPair(found.a, found.b, self.adapter.scale, da, db)

    def trains(self, *names: str) -> bool:
        return any(name + ".lora_a" in self.grads for name in names)

    def add_norm_grad(self, name: str, dw: np.ndarray) -> None:
        """From the gradient of an effective norm `[C]` to its pair's: dA = s Bᵀ dw, dB = s dw
        Aᵀ.
        """
        assert self.adapter is not None
        pair, s = self.adapter.pairs[name], np.float32(self.adapter.scale)
        self.grads[name + ".lora_a"] += s * pair.b[0][:, None] * dw[None, :]
        self.grads[name + ".lora_b"] += s * (pair.a * dw[None, :]).sum(axis=1)[None, :]


class Model:
    """A GGUF model ready to compute; made by `load_model`."""

    def __init__(self, gguf: GGUFFile, hp: Hparams) -> None:
        self.gguf = gguf
        self.hp = hp
        self.matrices: dict[str, Weight] = {}
        self.vectors: dict[str, np.ndarray] = {}
        for name, info in gguf.tensors.items():
            if len(info.shape) == 2:
                self.matrices[name] = Weight(
                    name, info.type_id, as_readonly(gguf.data(name)), info.shape
                )
            elif len(info.shape) == 1:
                check_finite(info.type_id, as_readonly(gguf.data(name)), info.shape[0], name)
                self.vectors[name] = self.tensor(name)
        self.output = self.matrices.get("output.weight", self.matrices["token_embd.weight"])
        self.slopes = alibi_slopes(hp.n_head, hp.alibi_max_bias)
        self._rope = (np.empty((0, 0), np.float32),) * 2
        self._checked: set[str] = set()

    def tensor(self, name: str) -> np.ndarray:
        """A base tensor decoded to float32, in its numpy shape (reversed ggml `ne`)."""
        info = self.gguf.tensors[name]
        count = int(np.prod(info.shape))
        return decode(info.type_id, self.gguf.data(name), count).reshape(info.shape)

    def matrix(self, name: str) -> Weight:
        """A weight by its name without `.weight`; its first use looks for NaN and infinities."""
        w = self.matrices[name + ".weight"]
        if name not in self._checked:
            check_finite(w.type_id, w.raw, w.shape[0] * w.shape[1], w.name)
            self._checked.add(name)
        return w

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_from_gguf(self.gguf)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return chat_template_for(self.tokenizer)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Numpy shape of every base tensor."""
        return {name: info.shape for name, info in self.gguf.tensors.items()}

    def rope_tables(self, n_positions: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin `[n_positions or more, n_rot/2]`, grown when a longer context asks for it."""
        if len(self._rope[0]) < n_positions:
            factors = self.vectors.get("rope_freqs.weight")
            hp, scaling = self.hp, self.hp.rope_scaling
            self._rope = rope_tables(
                max(n_positions, 512),
                hp.n_rot,
                hp.rope_freq_base,
                freq_scale=hp.rope_freq_scale,
                ext_factor=scaling.ext_factor,
                attn_factor=scaling.attn_factor,
                beta_fast=scaling.beta_fast,
                beta_slow=scaling.beta_slow,
                n_ctx_orig=scaling.n_ctx_orig,
                factors=factors,
            )
        return self._rope

    # The blocks

    def _bias(self, name: str, y: np.ndarray) -> None:
        bias = self.vectors.get(name + ".bias")
        if bias is not None:
            y += bias

    def block_forward(
        self,
        layer: int,
        bound: Bound,
        acts: Activations,
        batch: Batch,
        *,
        recompute: bool = False,
        cache: Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
        k_offsets: np.ndarray | None = None,
    ) -> None:
        """Block `layer`: acts.x(layer) -> acts.x(layer + 1), leaving a `BlockSet`.

        `recompute` stops where the backward pass has all it needs. `cache(layer, k, v)` exchanges
        the new keys and values for all of the sequence's (generation).
        """
        hp, n = self.hp, len(batch.tokens)
        kept = acts.block(layer, n)
        x, norm = acts.x(layer, n), acts.shared("norm", n)
        pool = acts.shared("panels", n)

        pairs = {s: bound.pair(f"blk.{layer}.{t}.weight") for s, t in LINEARS.items()}

        def source_of(values: np.ndarray, *slots: str) -> Input:
            return Input(values, pool, [(pairs[s], kept.hidden.get(s)) for s in slots])

        def apply(slot: str, source: Input, y: np.ndarray, add: bool = False) -> None:
            name = f"blk.{layer}.{LINEARS[slot]}"
            out, memory = y.reshape(n, -1), kept.hidden.get(slot)
            kept.hp[slot] = linear(self.matrix(name), pairs[slot], source, out, memory, add=add)
            self._bias(name, out)

        rms_norm(x, bound.norm(f"blk.{layer}.attn_norm.weight"), hp.rms_eps, norm, kept.rstd_att)
        source = source_of(norm, "q", "k", "v")
        for slot, y in (("q", kept.q), ("k", kept.k), ("v", kept.v)):
            apply(slot, source, y)
        if hp.alibi_max_bias == 0:
            for y in (kept.q, kept.k):
                self.rotate(y, batch.positions)
        keys, values = (kept.k, kept.v) if cache is None else cache(layer, kept.k, kept.v)
        offsets = batch.seq_offsets
        attention(
            kept.q, keys, values, offsets, offsets if k_offsets is None else k_offsets,
            hp.attn_scale, self.slopes, kept.att, kept.lse,
        )  # fmt: skip
        kept.x_mid[:] = x
        apply("o", source_of(kept.att.reshape(n, -1), "o"), kept.x_mid, add=True)

        rms_norm(
            kept.x_mid, bound.norm(f"blk.{layer}.ffn_norm.weight"), hp.rms_eps, norm, kept.rstd_ffn
        )
        source = source_of(norm, "gate", "up")
        apply("gate", source, kept.gate)
        apply("up", source, kept.up)
        act = acts.shared("act", n)
        gated(kept.gate, kept.up, act, gelu=hp.activation == "gelu")
        source = source_of(act, "down")
        if recompute:
            pair = pairs["down"]
            if pair is not None:
                kept.hp["down"] = source.hidden(pair, kept.hidden.get("down"))
            return
        out = acts.x(layer + 1, n)
        out[:] = kept.x_mid
        apply("down", source, out, add=True)

    def rotate(self, y: np.ndarray, positions: np.ndarray, *, inverse: bool = False) -> None:
        """RoPE on y `[N, heads, D]` in place."""
        cos, sin = self.rope_tables(int(positions.max()) + 1)
        halves = self.hp.rope_pairing == "halves"
        rope(y, positions, cos, sin, halves=halves, inverse=inverse)

    def block_backward(
        self, layer: int, bound: Bound, acts: Activations, batch: Batch, lowest: int
    ) -> None:
        """Block `layer` backwards: acts.dx from the gradient of its output to that of its input.

        `lowest` is the lowest block with something trained: in it, and nowhere above, the work that
        only feeds the layers below is left out.
        """
        hp, n = self.hp, len(batch.tokens)
        kept = acts.block(layer, n)
        dx, norm = acts.shared("dx", n), acts.shared("norm", n)
        dnorm, act = acts.shared("dnorm", n), acts.shared("act", n)
        buffers = (acts.shared("grad_panels", n), acts.shared("grad_hidden", n))
        blk = f"blk.{layer}."

        def back(
            slot: str, dy: np.ndarray, x: np.ndarray, out: np.ndarray | None, add: bool = False
        ) -> None:
            name = blk + LINEARS[slot]
            dy2 = dy.reshape(n, -1)
            out2 = None if out is None else out.reshape(n, -1)
            pair = bound.pair(name + ".weight")
            hidden = kept.hp.get(slot, NO_PANELS)
            linear_grad(self.matrix(name), pair, dy2, x, hidden, out2, buffers, add=add)

        gated(kept.gate, kept.up, act, gelu=hp.activation == "gelu")
        dact = acts.shared("dact", n)
        back("down", dx, act, dact)
        gated_grad(dact, kept.gate, kept.up, gelu=hp.activation == "gelu")
        ffn_norm = blk + "ffn_norm.weight"
        w = bound.norm(ffn_norm)
        rms_norm(kept.x_mid, w, hp.rms_eps, norm, kept.rstd_ffn)
        back("gate", kept.gate, norm, dnorm)
        back("up", kept.up, norm, dnorm, add=True)
        self._norm_grad(bound, ffn_norm, dnorm, kept.x_mid, kept.rstd_ffn)
        rms_norm_grad(dnorm, kept.x_mid, w, kept.rstd_ffn, dx, add=True)

        att_norm = blk + "attn_norm.weight"
        slots = [blk + LINEARS[s] + ".weight" for s in ("q", "k", "v", "o")]
        below = layer > lowest or bound.trains("token_embd.weight")
        if not below and not bound.trains(att_norm, *slots):
            return
        datt, dq = acts.shared("datt", n), acts.shared("dq", n)
        dk, dv = acts.shared("dk", n), acts.shared("dv", n)
        back("o", dx, kept.att.reshape(n, -1), datt)
        attention_grad(
            datt, kept.q, kept.k, kept.v, kept.att, kept.lse, batch.seq_offsets, hp.attn_scale,
            self.slopes, dq, dk, dv,
        )  # fmt: skip
        if hp.alibi_max_bias == 0:
            for y in (dq, dk):
                self.rotate(y, batch.positions, inverse=True)
        x, w = acts.x(layer, n), bound.norm(att_norm)
        rms_norm(x, w, hp.rms_eps, norm, kept.rstd_att)
        out = dnorm if below or bound.trains(att_norm) else None
        back("q", dq, norm, out)
        back("k", dk, norm, out, add=True)
        back("v", dv, norm, out, add=True)
        if out is None:
            return
        self._norm_grad(bound, att_norm, dnorm, x, kept.rstd_att)
        if below:
            rms_norm_grad(dnorm, x, w, kept.rstd_att, dx, add=True)

    def _norm_grad(
        self, bound: Bound, name: str, dy: np.ndarray, x: np.ndarray, rstd: np.ndarray
    ) -> None:
        if bound.trains(name):
            dw = np.zeros(x.shape[1], np.float32)
            rms_norm_grad_weight(dy, x, rstd, dw)
            bound.add_norm_grad(name, dw)

    # The whole

    def block_types(self, layer: int) -> tuple[int, ...]:
        """Quantised types of a block's matrices, in a fixed order: equal tuples need the same
        kernels.
        """
        return tuple(self.matrices[f"blk.{layer}.{t}.weight"].type_id for t in LINEARS.values())

    def embed_tokens(self, bound: Bound, acts: Activations, batch: Batch) -> None:
        """Token embeddings (with their LoRA pair) into acts.x(0)."""
        x = acts.x(0, len(batch.tokens))
        embed(self.matrix("token_embd"), batch.tokens, x)
        pair = bound.pair("token_embd.weight")
        if pair is not None:
            embed_lora(batch.tokens, pair.a, pair.b, pair.scale, x)

    def embed_tokens_backward(self, bound: Bound, acts: Activations, batch: Batch) -> None:
        """Gradient of the embedding's pair from acts.dx."""
        pair = bound.pair("token_embd.weight")
        if pair is not None and pair.da is not None and pair.db is not None:
            dx = acts.shared("dx", len(batch.tokens))
            embed_lora_grad(dx, batch.tokens, pair.a, pair.b, pair.scale, pair.da, pair.db)

    def forward(
        self, bound: Bound, acts: Activations, batch: Batch, check: Callable[[], None] | None = None
    ) -> None:
        """Embeddings and all blocks; the last block's output is acts.x(n_layer). `check` runs
        between blocks.
        """
        self.embed_tokens(bound, acts, batch)
        for layer in range(self.hp.n_layer):
            if check is not None:
                check()
            self.block_forward(layer, bound, acts, batch)

    def loss(
        self,
        bound: Bound,
        acts: Activations,
        buffers: LossBuffers,
        batch: Batch,
        weight: float,
        *,
        gradient: bool,
        floor: float = 0.0,
    ) -> float:
        """Sum of the trained positions' losses after `forward`; with `gradient`, acts.dx
        becomes that of `weight` times it. `floor`: under the probabilities, see `ops.loss`.
        """
        n = len(batch.tokens)
        rows = np.flatnonzero(batch.targets >= 0)
        m = len(rows)
        x, normed = acts.shared("top_x", m), acts.shared("top_norm", m)
        rstd, dnormed = acts.shared("top_rstd", m), acts.shared("top_dnorm", m)
        x[:] = acts.x(self.hp.n_layer, n)[rows]
        name = "output_norm.weight"
        w = bound.norm(name)
        rms_norm(x, w, self.hp.rms_eps, normed, rstd)
        head = self.output
        self.matrix(head.name.removesuffix(".weight"))
        total = output_loss(
            head, normed, batch.targets[rows], weight, dnormed if gradient else None,
            bound.pair(head.name), buffers, floor,
        )  # fmt: skip
        if gradient:
            self._norm_grad(bound, name, dnormed, x, rstd)
            dx = acts.shared("dx", n)
            dx.fill(0)
            back = normed
            rms_norm_grad(dnormed, x, w, rstd, back, add=False)
            dx[rows] = back
        return total

    def backward(
        self, bound: Bound, acts: Activations, batch: Batch, check: Callable[[], None] | None = None
    ) -> None:
        """All blocks backwards from acts.dx; gradients are added to `bound.grads`."""
        adapter = bound.adapter
        lowest = adapter.lowest_layer() if adapter is not None else self.hp.n_layer
        top = self.hp.n_layer - 1
        for layer in range(top, lowest - 1, -1):
            if check is not None:
                check()
            if acts.checkpointing and layer < top:
                self.block_forward(layer, bound, acts, batch, recompute=True)
            self.block_backward(layer, bound, acts, batch, lowest)
        self.embed_tokens_backward(bound, acts, batch)

    def activations(
        self, adapter: Adapter | None, n: int, n_trained: int, *, checkpointing: bool
    ) -> Activations:
        """Memory for micro-batches of at most `n` tokens, `n_trained` of them trained."""
        ranks = linear_ranks(adapter)
        top = max(ranks.values(), default=0)
        return Activations(self.hp, ranks, n, n_trained, top, checkpointing)

    def loss_buffers(self, adapter: Adapter | None, n_trained: int) -> LossBuffers:
        pair = adapter.pairs.get(self.output.name) if adapter is not None else None
        rank = pair.rank if pair else 0
        return LossBuffers(self.output.shape[0], self.hp.n_embd, rank, n_trained)


def linear_ranks(adapter: Adapter | None) -> dict[str, int]:
    """Largest rank of each slot of `LINEARS` over the blocks."""
    ranks = dict.fromkeys(LINEARS, 0)
    for name, pair in (adapter.pairs if adapter is not None else {}).items():
        for slot, tensor in LINEARS.items():
            if name.startswith("blk.") and name.endswith(f".{tensor}.weight"):
                ranks[slot] = max(ranks[slot], pair.rank)
    return ranks


def load_model(
    path: str | os.PathLike[str],
    *,
    rms_eps: float | None = None,
    rope_freq_base: float | None = None,
    rope_freq_scale: float | None = None,
) -> Model:
    """Open a GGUF model. Weights stay memory-mapped. Numbers that are given take the place of the
    file's (`arch.with_overrides`).

    Raises `GGUFError` for a file that is damaged or not supported.
    """
    gguf = open_gguf(path)
    hp = hparams_from_gguf(gguf)
    hp = with_overrides(
        hp, rms_eps=rms_eps, rope_freq_base=rope_freq_base, rope_freq_scale=rope_freq_scale
    )
    return Model(gguf, hp)
