"""Compute second moments of linear layers' inputs while a model with adapters processes a sample.

The moments are computed block by block. The residual stream of all tokens `[T, C]` stays in memory,
and a block processes it when the block's tensors are encoded. Therefore, the moments of only one
block are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nbllama.arch import Hparams
from nbllama.data.batch import Batch
from nbllama.kernels.own_cores import own_cores
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import slot_of
from nbllama.model.block import GATED_NODES, block_forward
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.ops.linear.matmul import Weight, matmul
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.quants import as_readonly

_STRIP = 1024  # rows of the second moments computed at a time
_F32 = 0  # ggml's id
_FUSED = {"attn_qkv": 0}


def input_of(name: str) -> tuple[int, int] | None:
    """Return the block and input number of a block's linear layer, or None for other tensors."""
    found = slot_of(name)
    if found is None or not found[0].in_block or found[0].kind != "linear":
        return None
    if found[0].name == "down_shexp":  # watchers do not receive its input
        return None
    slot, layer = found
    return layer, _FUSED.get(slot.tensor, slot.source)


def source_nodes(hp: Hparams) -> dict[str, int]:
    """Return the input numbers of the nodes that a block's linear layers read, by node name.

    If the input of the block is read without a norm, its name is "".
    """
    kind = hp.activation
    act = GATED_NODES[kind] if hp.gated else f"ffn_{kind}"
    nodes = {"attn_norm" if hp.attn_norm else "": 0, act: 3}
    nodes |= {"attn_gated" if hp.attn_gate else "kqv_out": 1, "conv_mixed": 1, "delta_out": 1}
    if hp.n_per_layer:
        nodes |= {"pe_in": 4, "per_layer_act": 5}
    if not hp.side_by_side:  # otherwise, feed-forward reads the same input as attention
        nodes["ffn_norm" if hp.ffn_norm else "ffn_inp"] = 2
    return nodes


def add_second_moments(x: np.ndarray, h: np.ndarray) -> None:
    """Add xᵀ x to the lower triangle of h, one strip of rows at a time.

    x is float32 `[N, n]`, and h is float32 `[n, n]`. Elements above the diagonal are undefined. The
    result is bit-identical for any number of threads.
    """
    turned = np.ascontiguousarray(x.T)
    n, tokens = turned.shape
    for at in range(0, n, _STRIP):
        end = min(n, at + _STRIP)
        rows = turned[at:end]
        panels = pack(rows, np.empty(panel_floats(len(rows), tokens), np.float32))
        raw = as_readonly(turned[:end].reshape(-1).view(np.uint8))
        part = np.empty((end - at, end), np.float32)
        matmul(Weight("second moments", _F32, raw, (end, tokens)), panels, part)
        h[at:end, :end] += part


class BlockInputs:
    """Second moments of the inputs of linear layers, one block at a time.

    While a block runs, this object is the model's `nbllama.model.watching.Watcher`.
    """

    def __init__(self, model: Model, adapter: Adapter | None, batches: Sequence[Batch]) -> None:
        if not batches:
            raise ValueError("no batches to read")
        self.layer = -1
        self.moments: dict[int, np.ndarray] = {}
        self._model, self._batches = model, batches
        self._nodes = source_nodes(model.hp)
        self._bound = Bound(model, adapter)
        self._acts = model.forward_activations(adapter, max(b.n_tokens for b in batches))
        # for each batch, the keys and values that later blocks also use
        self._lent: list[dict[str, np.ndarray]] = [{} for _ in batches]
        self._streams = []
        for batch in batches:
            model.embed_tokens(self._bound, self._acts, batch)
            self._streams.append(self._acts.x(0, batch.n_tokens).copy())

    @property
    def n_tokens(self) -> int:
        """The number of tokens in the sample."""
        return sum(b.n_tokens for b in self._batches)

    def advance(self) -> None:
        """Run the next block, and store the second moments of its inputs in `moments`.

        `moments` maps input numbers to float32 `[n, n]`. Raises `RuntimeError` if the model is
        already being watched.
        """
        if self._model.watch is not None:
            raise RuntimeError("the model already has a watcher")
        self.layer += 1
        self.moments = {}
        self._model.watch = self
        try:
            for stream, lent, batch in zip(self._streams, self._lent, self._batches, strict=True):
                self._restore(lent, batch)
                self._acts.x(self.layer, batch.n_tokens)[:] = stream
                self.node("", self.layer, stream)
                with own_cores():
                    block_forward(self._model, self.layer, self._bound, self._acts, batch=batch)
                stream[:] = self._acts.x(self.layer + 1, batch.n_tokens)
                if self.layer in self._model.hp.lent:
                    for name in (f"k_of_{self.layer}", f"v_of_{self.layer}"):
                        lent[name] = self._acts.shared(name, batch.n_tokens).copy()
        finally:
            self._model.watch = None
        if self._model.hp.side_by_side:
            self.moments[2] = self.moments[0].copy()

    def _restore(self, lent: dict[str, np.ndarray], batch: Batch) -> None:
        """Compute or copy the block's inputs for this batch, except the residual stream."""
        if self._model.hp.n_per_layer:
            self._model.embed_tokens(self._bound, self._acts, batch)
        for name, x in lent.items():
            self._acts.shared(name, batch.n_tokens)[:] = x

    def node(self, name: str, layer: int, x: np.ndarray) -> None:
        """Update the second moments with a layer's input."""
        source = self._nodes.get(name)
        if source is None:
            return
        x = x.reshape(len(x), -1)
        if source not in self.moments:
            self.moments[source] = np.zeros((x.shape[1], x.shape[1]), np.float32)
        add_second_moments(x, self.moments[source])

    def begin(self, bound: Any, batch: Batch) -> None:
        """Do nothing; see `Watcher`."""

    def wants(self, name: str, layer: int = -1) -> bool:
        """Return False, because this watcher uses only nodes that the passes compute anyway."""
        return False

    def attention(
        self,
        layer: int,
        q: np.ndarray,
        k: np.ndarray,
        *,
        q_offsets: np.ndarray,
        k_offsets: np.ndarray,
    ) -> None:
        """Do nothing; see `Watcher`."""

    def gradient(self, name: str, layer: int, dx: np.ndarray) -> None:
        """Do nothing; see `Watcher`."""
