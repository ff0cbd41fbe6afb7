"""Components of a token's program: inputs, linear layers, and branches.

`nbllama.generation.token_program` uses them for ordinary blocks, `nbllama.generation.token_mixture`
for mixtures of experts, and `nbllama.generation.token_mixers` for blocks without attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nbllama.generation.token_writer import Layer, Writer
from nbllama.model.bound import Bound
from nbllama.model.parts import POST_NORMS
from nbllama.model.weights import Weights
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.token import tables as kinds


class ProgramParts:
    """The methods that add common parts to a program.

    `x` `[C]` is the residual stream, and `norm` `[C]` is the input of linear layers.
    """

    def __init__(self, model: Weights, bound: Bound, write: Writer, x: np.ndarray) -> None:
        self.model, self.bound, self.write, self.x = model, bound, write, x
        self.hp = model.hp
        self.norm = np.empty(self.hp.n_embd, np.float32)
        self._branch = np.empty(self.hp.n_embd, np.float32)

    def reads(self, norm: str, ws: Sequence[Weight], scale: float = 1.0) -> None:
        """Prepare the stream as input for these weights, normalised if `norm` is not empty."""
        hp, write = self.hp, self.write
        w = self.bound.norm(f"{norm}.weight") if norm else None
        bias = self.model.vectors.get(f"{norm}.bias")
        at = [write.floats(a, hp.n_embd) for a in (self.x, w, bias, self.norm)]
        centred = bool(norm) and hp.norm == "layer"
        write.phase(kinds.NORM, 1, [(*at, hp.n_embd, centred, hp.rms_eps, scale, write.forms(ws))])

    def layers(
        self, layer: int, outputs: Mapping[str, np.ndarray], add: bool = False
    ) -> list[Layer]:
        """Return a block's linear layers for the keys of `outputs` (names in `LINEARS`)."""
        found = []
        for slot, y in outputs.items():
            w, bias = self.model.linear(layer, slot), self.model.bias(layer, slot)
            pair = self.bound.linear_pair(layer, slot)
            found.append(
                Layer(w, pair, None if bias is None else np.ascontiguousarray(bias), y, add)
            )
        return found

    def add(self, layer: int, slot: str, x: np.ndarray) -> None:
        """Add a branch's last layer, whose output is added to the stream (`block.branch`)."""
        hp, write = self.hp, self.write
        if hp.residual_scale == 1 and not hp.has_post_norms:
            write.products(x, self.layers(layer, {slot: self.x}, add=True))
            return
        write.products(x, self.layers(layer, {slot: self._branch}))
        w = None
        if hp.has_post_norms:
            w = self.model.vectors[f"blk.{layer}.{POST_NORMS[slot]}"]
        at = [write.floats(a, hp.n_embd) for a in (self._branch, w, self.x)]
        row = (*at, hp.n_embd, hp.rms_eps, hp.residual_scale)
        write.phase(kinds.BRANCH, 1, [row])
