"""An adapter at work on a model: what the passes look up, and where gradients are added up."""

from __future__ import annotations

import numpy as np

from nbllama.errors import CheckpointError
from nbllama.lora.pairs import Adapter
from nbllama.model.weights import Weights
from nbllama.ops.dropout import Dropout
from nbllama.ops.linear.linear import LoraPair


class Bound:
    """An adapter at work on a model: pairs by tensor name, effective norms, and gradients by
    parameter name. `dropout`: of the inputs of the blocks' pairs; None for all but training.
    """

    dropout: Dropout | None = None

    def __init__(self, model: Weights, adapter: Adapter | None, trained: bool = False) -> None:
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

    def linear_pair(self, layer: int, slot: str) -> LoraPair | None:
        """The pair of a slot of `LINEARS`; in a tensor that holds several, they share A, and each
        has its rows of B.
        """
        tensor, rows = self._model.linears[slot]
        pair = self.pair(f"blk.{layer}.{tensor}.weight")
        if pair is None:
            return None
        db = None if pair.db is None else pair.db[rows]
        return pair._replace(b=pair.b[rows], db=db)

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
