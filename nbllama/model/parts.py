"""The parts of a block's passes: tensor names, norms, linear layers and branches.

`nbllama.model.block` uses these parts for ordinary blocks, `nbllama.model.mixture` for mixtures of
experts, and `nbllama.model.mixers` for blocks without attention. Shapes are the same as in
`nbllama.model.block`.
"""

from __future__ import annotations

import numpy as np

from nbllama.data.batch import Batch
from nbllama.lora.slots import LINEARS
from nbllama.model.activations import Activations
from nbllama.model.bound import Bound
from nbllama.model.size_shapes import fitted, own_shape
from nbllama.model.weights import Weights
from nbllama.ops.linear.linear import Input, Masked, linear, linear_grad
from nbllama.ops.linear.panels import NO_PANELS

# Norms that occur only in some models, by the layer that they follow. LoRA cannot train them.
POST_NORMS = {"o": "post_attention_norm.weight", "down": "post_ffw_norm.weight"}

# llama.cpp's names for the results, which are passed to a watcher (`nbllama.model.watching`).
_POST_NODES = {"o": "attn_post_norm", "down": "ffn_post_norm"}


class BlockParts:
    """One block, applied to one batch."""

    def __init__(
        self, model: Weights, layer: int, bound: Bound, acts: Activations, *, batch: Batch
    ) -> None:
        self.model, self.layer, self.bound, self.acts, self.batch = model, layer, bound, acts, batch
        self.hp, self.n = model.hp, len(batch.tokens)
        self.sizes = model.hp.sizes_at(layer)
        self.kept = acts.block(layer, self.n)
        if self.hp.blocks:
            self._fit()
        self.pairs = {name: bound.linear_pair(layer, name) for name in model.linears_at(layer)}
        self.watch = model.watch

    def _fit(self) -> None:
        """Reshape the arrays in `kept` to the sizes of this block.

        Keys and values that several blocks use are in shared arrays.
        """
        kept, n, sizes = self.kept, self.n, self.sizes
        for name in ("q", "att", "k", "v", "gate", "up"):
            shape = own_shape(name, sizes, self.hp.n_head)
            assert shape is not None
            setattr(kept, name, fitted(getattr(kept, name), n, shape))
        for name in ("q", "k", "v"):
            shape = own_shape(name, sizes, self.hp.n_head)
            if shape is not None and name in kept.norms:
                kept.norms[name] = fitted(kept.norms[name], n, shape)
        if sizes.kv_from in self.hp.lent:
            kept.k = self.shared(f"k_of_{sizes.kv_from}")
            kept.v = self.shared(f"v_of_{sizes.kv_from}")

    def see(self, name: str, x: np.ndarray) -> None:
        """Pass a result to the watcher, if there is one."""
        if self.watch is not None:
            self.watch.node(name, self.layer, x)

    def see_grad(self, name: str, dx: np.ndarray) -> None:
        """Pass a gradient to the watcher, if there is one."""
        if self.watch is not None:
            self.watch.gradient(name, self.layer, dx)

    def name(self, tensor: str) -> str:
        """Return the full name of a tensor of this block."""
        return f"blk.{self.layer}.{tensor}"

    def trains(self, *linears: str) -> bool:
        """Return whether any of these linear layers has a trained pair."""
        return any(pair.da is not None for name in linears if (pair := self.pairs[name]))

    def shared(self, name: str) -> np.ndarray:
        """Return an array that all blocks share, with one row per token."""
        array = self.acts.shared(name, self.n)
        shape = own_shape(name, self.sizes, self.hp.n_head) if self.hp.blocks else None
        return array if shape is None else fitted(array, self.n, shape)

    def dense(self, array: np.ndarray) -> np.ndarray:
        """Return a feed-forward array as `[N, F]`.

        If the model has experts, `array` can be larger.
        """
        return fitted(array, self.n, (self.sizes.n_ff,))

    # Parts of the passes

    def source(self) -> tuple[np.ndarray, str, np.ndarray]:
        """Return the stream that feed-forward reads, and the name and rstd of its norm."""
        if self.hp.side_by_side:
            return self.acts.x(self.layer, self.n), self.hp.attn_norm, self.kept.rstd_att
        return self.kept.x_mid, self.hp.ffn_norm, self.kept.rstd_ffn

    def reads(self, x: np.ndarray, norm: str, rstd: np.ndarray) -> np.ndarray:
        """Return the normalised stream, or x if there is no norm.

        The normalised stream is valid until the next call.
        """
        if not norm:
            return x
        y = self.shared("norm")
        self.bound.normed(self.name(f"{norm}.weight"), x, y, rstd)
        return y

    def reads_grad(
        self, dy: np.ndarray, x: np.ndarray, norm: str, rstd: np.ndarray, *, dx: np.ndarray | None
    ) -> None:
        """Add the gradient with respect to x to dx; also add the gradients of the norm's pair."""
        if norm:
            self.bound.normed_grad(self.name(f"{norm}.weight"), dy, x, rstd, dx=dx, add=True)
        elif dx is not None:
            dx += dy

    def input(self, x: np.ndarray, *linears: str) -> Input:
        """Prepare x `[N, n_in]` as the input for these linear layers."""
        group = [(self.pairs[name], self.kept.h_memory.get(name)) for name in linears]
        return Input(x, self.acts.pool("panels"), group, self.masked(*linears))

    def masked(self, *linears: str) -> Masked | None:
        """Return the dropout mask for the input of these linear layers.

        Returns None if there is no dropout or if none of the layers has a pair.
        """
        if self.bound.dropout is None or not any(self.pairs[name] for name in linears):
            return None
        mask = self.bound.dropout.at(self.layer, LINEARS[linears[0]].source)
        return Masked(mask, self.acts.pool("dropped"), self.acts.pool("dropped_panels"))

    def project(self, name: str, x: Input, y: np.ndarray, *, add: bool = False) -> None:
        """Set y `[N, ...]` to the output of layer `name`, including the bias.

        With `add`, the output is added to y.
        """
        w, bias = self.model.linear(self.layer, name), self.model.bias(self.layer, name)
        out, memory = y.reshape(self.n, -1), self.kept.h_memory.get(name)
        self.kept.h[name] = linear(w, self.pairs[name], x, out, hidden=memory, add=add)
        if bias is not None:
            out += bias

    def project_grad(
        self, name: str, dy: np.ndarray, x: np.ndarray, dx: np.ndarray | None, *, add: bool = False
    ) -> None:
        """Set dx `[N, ...]` to the gradient with respect to x; with `add`, add the gradient to dx.

        The gradients of the layer's pair are added to `bound.grads`.
        """
        dy, out = dy.reshape(self.n, -1), None if dx is None else dx.reshape(self.n, -1)
        buffers = (self.acts.pool("grad_panels"), self.acts.pool("grad_hidden"))
        w, h = self.model.linear(self.layer, name), self.kept.h.get(name, NO_PANELS)
        linear_grad(
            w, self.pairs[name], dy, x, hp=h, dx=out, buffers=buffers, add=add,
            masked=self.masked(name),
        )  # fmt: skip

    # A branch adds the output of attention or feed-forward to the stream. `name` is its last layer.

    def branch(self, name: str, x: Input, stream: np.ndarray) -> None:
        """Add the output of layer `name`, after any norm and scaling, to `stream` `[N, C]`."""
        hp, kept, node = self.hp, self.kept, LINEARS[name].node
        if hp.residual_scale == 1 and not hp.has_post_norms:
            self.project(name, x, stream, add=True)
            if self.watch is not None and self.watch.wants(node, self.layer):
                alone = np.empty_like(stream)
                self.project(name, x, alone)
                self.see(node, alone)
            return
        y = self.shared("branch")
        if hp.has_post_norms:
            out = kept.norms[name]
            self.project(name, x, out)
            self.bound.normed(self.name(POST_NORMS[name]), out, y, kept.norms[f"rstd_{name}"])
            self.see(node, out)
            self.see(_POST_NODES[name], y)
        else:
            self.project(name, x, y)
            self.see(node, y)
        y *= np.float32(hp.residual_scale)
        stream += y

    def branch_grad(self, name: str, dstream: np.ndarray) -> np.ndarray:
        """Return the gradient of the layer's output, given the gradient of the stream."""
        hp, kept = self.hp, self.kept
        if hp.residual_scale == 1 and not hp.has_post_norms:
            return dstream
        dy = self.shared("branch")
        np.multiply(dstream, np.float32(hp.residual_scale), out=dy)
        if hp.has_post_norms:
            norm, rstd = self.name(POST_NORMS[name]), kept.norms[f"rstd_{name}"]
            self.bound.normed_grad(norm, dy, kept.norms[name], rstd, dx=dy)
        return dy
