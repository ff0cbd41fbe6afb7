"""The model: the forward pass, the loss, and the backward pass.

`nbllama.model.weights` contains the tensors, `nbllama.model.bound` binds an adapter to them, and
`nbllama.model.block` computes a block. The order of operations is the same as in the graph of
finetune.cpp, from t01 (the embeddings) to t36 (the loss). Activations form a float32 stream
`[N, C]`, in which all sequences of a micro-batch are concatenated. Base weights are never modified,
and a matrix is never decoded as a whole.

In shapes, N is the number of tokens, C is n_embd, H is n_head, G is n_head_kv, D is head_dim, F is
n_ff, V is n_vocab, and M is the number of trained positions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from nbllama.arch import hparams_from_gguf, with_overrides
from nbllama.data.batch import Batch
from nbllama.gguf_io import open_gguf
from nbllama.kernels.own_cores import own_cores
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import LINEARS
from nbllama.model import per_layer
from nbllama.model.activations import Activations, ForwardActivations, Layout, norm_numbers
from nbllama.model.block import block_backward, block_forward
from nbllama.model.bound import Bound
from nbllama.model.watching import TOP_NODES, show_loss
from nbllama.model.weights import Weights
from nbllama.ops.embed import embed, embed_lora, embed_lora_grad
from nbllama.ops.linear.linear import Input, linear
from nbllama.ops.linear.panels import panel_floats
from nbllama.ops.loss import LossBuffers, output_loss
from nbllama.ops.softcap import soft_cap

M = TypeVar("M", bound="Model")


class Trunk(Protocol):
    """A store for the inputs x `[N, C]` of block `layer`, with one entry per sample."""

    layer: int

    def load(self, x: np.ndarray, batch: Batch) -> bool:
        """Fill x with the stored inputs; return False if a sample of the batch is not stored."""
        ...

    def keep(self, x: np.ndarray, batch: Batch) -> None:
        """Store the inputs x of all samples in the batch."""
        ...


class Model(Weights):
    """A GGUF model, ready to run; created by `load_model`."""

    @classmethod
    def load(
        cls: type[M],
        path: str | os.PathLike[str],
        *,
        rms_eps: float | None = None,
        rope_freq_base: float | None = None,
        rope_freq_scale: float | None = None,
        pre: str | None = None,
    ) -> M:
        """Open a GGUF model; the weights stay memory-mapped.

        Constants passed as arguments override those in the file (`arch.with_overrides`). `pre`
        overrides the name of the pre-tokenizer. Raises `GGUFError` if the file is damaged or not
        supported.
        """
        gguf = open_gguf(path)
        hp = hparams_from_gguf(gguf)
        hp = with_overrides(
            hp, rms_eps=rms_eps, rope_freq_base=rope_freq_base, rope_freq_scale=rope_freq_scale
        )
        return cls(gguf, hp, pre)

    def embed_tokens(self, bound: Bound, acts: Activations, batch: Batch) -> None:
        """Write the token embeddings, with their LoRA pair applied, to acts.x(0)."""
        x = acts.x(0, len(batch.tokens))
        embed(self.matrix("token_embd"), batch.tokens, x)
        pair = bound.pair("token_embd.weight")
        if pair is not None:
            embed_lora(batch.tokens, pair.a, pair.b, scale=pair.scale, x=x)
        if self.hp.embed_scale != 1:
            x *= np.float32(self.hp.embed_scale)
        if self.watch is not None:
            self.watch.begin(bound, batch)
            self.watch.node("inp_embd", -1, x)
        if self.hp.n_per_layer:
            per_layer.embed_rows(self, bound, acts, batch)

    def embed_tokens_backward(self, bound: Bound, acts: Activations, batch: Batch) -> None:
        """Add the gradients of the embedding's pair, given acts.dx."""
        pair = bound.pair("token_embd.weight")
        if pair is not None and pair.da is not None and pair.db is not None:
            dx = acts.shared("dx", len(batch.tokens))
            if self.hp.n_per_layer:
                per_layer.embed_grad(self, bound, acts, batch)
            if self.watch is not None:
                self.watch.gradient("inp_embd", -1, dx)
            scale = pair.scale * self.hp.embed_scale
            embed_lora_grad(dx, batch.tokens, pair.a, pair.b, scale=scale, da=pair.da, db=pair.db)

    @own_cores()
    def forward(
        self,
        bound: Bound,
        acts: Activations,
        batch: Batch,
        check: Callable[[], None] | None = None,
        *,
        trunk: Trunk | None = None,
    ) -> None:
        """Compute the embeddings and all blocks; the output of the last block is acts.x(n_layer).

        `check` is called before every block. If there is no watcher and `trunk` contains all
        samples of the batch, the blocks before `trunk.layer` are skipped.
        """
        if self.watch is not None:
            trunk = None
        if trunk is not None and trunk.layer > self.hp.most_frozen:
            raise ValueError(
                f"blocks below {trunk.layer} cannot be skipped: later blocks use their keys"
            )
        first = 0
        if self.hp.n_per_layer:  # later blocks also read the embeddings
            self.embed_tokens(bound, acts, batch)
        if trunk is not None and trunk.load(acts.x(trunk.layer, batch.n_tokens), batch):
            first = trunk.layer
        elif not self.hp.n_per_layer:
            self.embed_tokens(bound, acts, batch)
        for layer in range(first, self.hp.n_layer):
            if check is not None:
                check()
            if trunk is not None and layer == trunk.layer and not first:
                trunk.keep(acts.x(layer, batch.n_tokens), batch)
            block_forward(self, layer, bound, acts, batch=batch)

    @own_cores()
    def loss(
        self,
        bound: Bound,
        acts: Activations,
        buffers: LossBuffers,
        batch: Batch,
        *,
        weight: float | np.ndarray,
        gradient: bool,
        floor: float = 0.0,
    ) -> float:
        """Return the sum of the losses at the trained positions; call this method after `forward`.

        With `gradient`, acts.dx is set to the gradient of the sum times `weight`. `weight` can also
        contain one weight per position (float64 `[M]`). See `ops.cross_entropy` for `floor`.
        """
        n = len(batch.tokens)
        rows, targets = batch.trained()
        m = len(rows)
        x, normed = acts.shared("top_x", m), acts.shared("top_norm", m)
        rstd, dnormed = acts.shared("top_rstd", m), acts.shared("top_dnorm", m)
        # in the default mode (not "clip"), numpy would first write to a temporary copy
        np.take(acts.x(self.hp.n_layer, n), rows, axis=0, out=x, mode="clip")
        name = f"{self.hp.output_norm}.weight"
        bound.normed(name, x, normed, rstd)
        head = self.matrix(self.output.name.removesuffix(".weight"))
        scale = np.float32(self.hp.logit_scale)
        normed *= scale
        total = output_loss(
            head, normed, targets, weight=weight, dx=dnormed if gradient else None,
            pair=bound.pair(head.name), buffers=buffers, floor=floor, cap=self.hp.logit_softcap,
            bias=self.output_bias,
        )  # fmt: skip
        if self.watch is not None:
            if any(map(self.watch.wants, TOP_NODES)):
                # the loss computes logits only for trained tokens, and never stores all logits
                whole, last = batch.whole(), acts.x(self.hp.n_layer, n)
                last = last if batch.tree is None else last[batch.tree.rows]
                show_loss(self.watch, self.logits(bound, last), whole, weight)
            if gradient and self.watch.wants("result_norm.grad"):
                every = np.zeros_like(acts.x(self.hp.n_layer, n))
                np.add.at(every, rows, dnormed)
                self.watch.gradient("result_norm", -1, every)
        if gradient:
            dnormed *= scale
            dx = acts.shared("dx", n)
            dx.fill(0)
            back = normed
            bound.normed_grad(name, dnormed, x, rstd, dx=back)
            if batch.tree is None:
                dx[rows] = back
            else:  # a row can have more than one target
                np.add.at(dx, rows, back)
        return total

    @own_cores()
    def logits(self, bound: Bound, x: np.ndarray, panels: np.ndarray | None = None) -> np.ndarray:
        """Compute the float32 logits `[N, V]` from the last block's output x `[N, C]`.

        `panels` is memory for the packed x.
        """
        hp, n = self.hp, len(x)
        head = self.matrix(self.output.name.removesuffix(".weight"))
        normed = np.empty((n, hp.n_embd), np.float32)
        rstd = np.empty(norm_numbers(hp, n), np.float32)
        bound.normed(f"{hp.output_norm}.weight", x, normed, rstd)
        normed *= np.float32(hp.logit_scale)
        if panels is None:
            panels = np.empty(panel_floats(n, hp.n_embd), np.float32)
        out = np.empty((n, head.shape[0]), np.float32)
        linear(head, bound.pair(head.name), Input(normed, panels), out, hidden=None)
        if self.output_bias is not None:
            out += self.output_bias
        if hp.logit_softcap > 0:
            soft_cap(out, hp.logit_softcap)
        if self.watch is not None:
            self.watch.node("result_norm", -1, normed)
            self.watch.node("result_output", -1, out)
        return out

    @own_cores()
    def backward(
        self, bound: Bound, acts: Activations, batch: Batch, check: Callable[[], None] | None = None
    ) -> None:
        """Run the blocks backward, starting from acts.dx; add the gradients to `bound.grads`."""
        adapter = bound.adapter
        lowest = adapter.lowest_layer() if adapter is not None else self.hp.n_layer
        top = self.hp.n_layer - 1
        for layer in range(top, lowest - 1, -1):
            if check is not None:
                check()
            if acts.recomputes(layer):
                block_forward(self, layer, bound, acts, batch=batch, recompute=True)
            block_backward(self, layer, bound, acts, batch=batch, lowest=lowest)
        self.embed_tokens_backward(bound, acts, batch)

    def activations(
        self,
        adapter: Adapter | None,
        n: int,
        n_trained: int,
        *,
        checkpointing: bool,
        kept: int = 0,
        dropout: bool = False,
    ) -> Activations:
        """Allocate memory for micro-batches of up to `n` tokens and `n_trained` trained positions.

        See `nbllama.model.activations` for `kept`.
        """
        sizes = layout(self, adapter, n, n_trained, dropout=dropout)
        return Activations(sizes, checkpointing=checkpointing, kept=kept)

    def forward_activations(self, adapter: Adapter | None, n: int) -> ForwardActivations:
        """Allocate memory for batches of up to `n` tokens that need no backward pass."""
        return ForwardActivations(layout(self, adapter, n))

    def loss_buffers(self, adapter: Adapter | None, n_trained: int) -> LossBuffers:
        """Allocate the memory that `loss` uses for at most `n_trained` trained positions."""
        pair = adapter.pairs.get(self.output.name) if adapter is not None else None
        rank = pair.rank if pair else 0
        cap = self.hp.logit_softcap
        return LossBuffers(self.output.shape[0], self.hp.n_embd, rank, n_trained, cap=cap)


def layout(
    model: Weights, adapter: Adapter | None, n: int, n_trained: int = 0, *, dropout: bool = False
) -> Layout:
    """Return the `Layout` of the arrays for a step.

    The rank of a linear layer is the largest of its ranks in all blocks.
    """
    ranks = dict.fromkeys(LINEARS, 0)
    for base, pair in (adapter.pairs if adapter is not None else {}).items():
        for name, (tensor, _) in model.linears.items():
            if base.startswith("blk.") and base.endswith(f".{tensor}.weight"):
                ranks[name] = max(ranks[name], pair.rank)
    pairs = adapter.pairs.items() if adapter is not None else ()
    routed = max((pair.rank for base, pair in pairs if base in model.experts), default=0)
    return Layout(model.hp, ranks, n, n_trained, dropout, routed)


def load_model(path: str | os.PathLike[str], **constants: Any) -> Model:
    """Open a GGUF model; `Model.load` documents `constants` and the errors raised."""
    return Model.load(path, **constants)
