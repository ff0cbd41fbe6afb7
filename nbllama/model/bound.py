"""Bind an adapter to a model, so that the passes can look up pairs and accumulate gradients."""

from __future__ import annotations

import numpy as np

from nbllama.errors import CheckpointError
from nbllama.lora.pairs import Adapter
from nbllama.model.weights import Weights
from nbllama.ops.dropout import Dropout
from nbllama.ops.layer_norm import layer_norm, layer_norm_grad, layer_norm_grad_weight
from nbllama.ops.linear.linear import LoraPair
from nbllama.ops.rms_norm import rms_norm, rms_norm_grad, rms_norm_grad_weight


class Bound:
    """The pairs of an adapter and their gradients, bound to the tensors of a model.

    `dropout` applies to the inputs of the pairs in blocks. It is None except during training.
    """

    dropout: Dropout | None = None
    load: np.ndarray | None = None  # int64 [n_layer, E]: tokens routed to each expert so far

    def __init__(self, model: Weights, adapter: Adapter | None, trained: bool = False) -> None:
        """Bind `adapter` to `model`.

        Raises `CheckpointError` if the shapes of the adapter do not match the model.
        """
        if adapter is not None and (problem := adapter.misfit(model.shapes)):
            raise CheckpointError(f"the adapter is for a different model: {problem}")
        self._model = model
        self.adapter = adapter
        self.grads: dict[str, np.ndarray] = {}
        if adapter is not None and trained:
            self.grads = {k: np.zeros_like(p) for k, p in adapter.parameters().items()}
        if trained and (experts := model.hp.experts) is not None:
            self.load = np.zeros((model.hp.n_layer, experts.total), np.int64)
        self._norms: dict[str, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> None:
        """Recompute the effective norm weights; call this method after every optimiser step."""
        self._norms = {}
        if self.adapter is not None:
            scale = np.float32(self.adapter.scale)
            for name, pair in self.adapter.pairs.items():
                if name in self._model.vectors:
                    delta = scale * (pair.b[0][:, None] * pair.a).sum(axis=0)
                    self._norms[name] = self._model.vectors[name] + delta

    def zero_grads(self) -> None:
        """Set all gradients and all per-expert token counts to 0."""
        if self.load is not None:
            self.load.fill(0)
        for g in self.grads.values():
            g.fill(0)

    def trains(self, *names: str) -> bool:
        """Return whether any of these base tensors has a trained pair."""
        return any(name + ".lora_a" in self.grads for name in names)

    def pair(self, name: str) -> LoraPair | None:
        """Return the pair of a matrix with its gradient arrays, or None if there is no pair."""
        if self.adapter is None or (stored := self.adapter.pairs.get(name)) is None:
            return None
        da, db = self.grads.get(name + ".lora_a"), self.grads.get(name + ".lora_b")
        return LoraPair(stored.a, stored.b, self.adapter.scale, da, db)

    def linear_pair(self, layer: int, linear: str) -> LoraPair | None:
        """Return the pair of a linear layer, or None if the layer has no pair.

        Layers in the same tensor share A; each layer has its own rows of B.
        """
        tensor, rows = self._model.linears[linear]
        pair = self.pair(f"blk.{layer}.{tensor}.weight")
        if pair is None:
            return None
        db = None if pair.db is None else pair.db[rows]
        return pair._replace(b=pair.b[rows], db=db)

    def expert_pair(self, layer: int, tensor: str, expert: int) -> LoraPair | None:
        """Return the pair of one expert in `tensor`, or None if the tensor has no pair."""
        pair = self.pair(f"blk.{layer}.{tensor}.weight")
        if pair is None:
            return None
        da, db = (None if g is None else g[expert] for g in (pair.da, pair.db))
        return LoraPair(pair.a[expert], pair.b[expert], pair.scale, da, db)

    def norm(self, name: str) -> np.ndarray:
        """Return the norm weight `[C]` with its LoRA delta, w + s (B A)[0]."""
        return self._norms.get(name, self._model.vectors[name])

    def normed(self, name: str, x: np.ndarray, y: np.ndarray, rstd: np.ndarray) -> None:
        """Normalise x `[N, C]` with the norm `name`, write the result to y `[N, C]`, and set rstd.

        The gradient requires rstd `[N]`. For LayerNorm, rstd is `[N, 2]` and also contains the mean
        (`activations.norm_numbers`).
        """
        w, hp = self.norm(name), self._model.hp
        if hp.norm == "layer":
            bias = self._model.vectors.get(name.replace(".weight", ".bias"))
            mean, rstd = rstd.reshape(2, -1)
            layer_norm(x, w, bias, hp.rms_eps, y=y, mean=mean, rstd=rstd)
        else:
            rms_norm(x, w, hp.rms_eps, y=y, rstd=rstd)

    def normed_grad(
        self,
        name: str,
        dy: np.ndarray,
        x: np.ndarray,
        rstd: np.ndarray,
        *,
        dx: np.ndarray | None,
        add: bool = False,
    ) -> None:
        """Set dx `[N, C]` to the gradient with respect to x; add the gradients of the norm's pair.

        With `add`, add to dx instead. If dx is None, compute only the gradients of the pair.
        """
        self.add_norm_grad(name, dy, x, rstd)
        if dx is None:
            return
        w = self.norm(name)
        if self._model.hp.norm == "layer":
            mean, rstd = rstd.reshape(2, -1)
            layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=dx, add=add)
        else:
            rms_norm_grad(dy, x, w, rstd, dx=dx, add=add)

    def add_norm_grad(self, name: str, dy: np.ndarray, x: np.ndarray, rstd: np.ndarray) -> None:
        """Add the gradients of a norm's pair, if the norm has a trained pair.

        dy `[N, C]` is the gradient of the norm's output, x `[N, C]` is its input, and rstd
        was set by `normed`. The gradients are computed from dw `[C]`, the gradient with respect to
        the effective weight:

            dA += s Bᵀ dw        dB += s dw Aᵀ
        """
        if self.adapter is None or not self.trains(name):
            return
        dw = np.zeros(x.shape[1], np.float32)
        if self._model.hp.norm == "layer":
            mean, rstd = rstd.reshape(2, -1)
            layer_norm_grad_weight(dy, x, mean=mean, rstd=rstd, dw=dw)
        else:
            rms_norm_grad_weight(dy, x, rstd, dw)
        pair, s = self.adapter.pairs[name], np.float32(self.adapter.scale)
        self.grads[name + ".lora_a"] += s * pair.b[0][:, None] * dw[None, :]
        self.grads[name + ".lora_b"] += s * (pair.a * dw[None, :]).sum(axis=1)[None, :]
