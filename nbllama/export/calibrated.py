"""Round matrices so that layer outputs on a sample of the training data are preserved.

Rounding to the nearest code restores the old values of most weights, because an adapter changes
them by less than half a step. With error feedback (`nbllama.export.feedback`), the codes of a row
are chosen jointly. Each row is rounded once with the scales of the base and once with new scales
for the merged weights, and the result with the smaller error in the outputs is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nbllama.export.feedback import Factor, factorise, round_matrix
from nbllama.export.grids import grid_of, has_grid, with_codes
from nbllama.export.inputs import BlockInputs, input_of
from nbllama.lora.pairs import Pair
from nbllama.lora.slots import slot_of
from nbllama.quants.encode import quantise


def rounds(name: str, type_id: int) -> bool:
    """Return whether a tensor can be rounded to this type with error feedback."""
    return input_of(name) is not None and has_grid(type_id)


def nearest_line(merged: Iterable[str], types: Mapping[str, int]) -> str:
    """Describe merged expert tensors that are rounded to nearest although their type has a grid.

    `merged` lists the tensors with a pair. Returns "" if there are no such expert tensors.
    """
    found = [n for n in merged if has_grid(types[n]) and not rounds(n, types[n])]
    slots = [slot[0] for slot in map(slot_of, found) if slot is not None]
    kinds = sorted({slot.tensor for slot in slots if slot.tensor.endswith(("_exps", "_shexp"))})
    if not kinds:
        return ""
    return (
        f"rounded to nearest without calibration: {', '.join(kinds)}; much of what the "
        "adapter learnt for these tensors may be lost (--outtype q8_0 keeps more)"
    )


class Encoded(NamedTuple):
    """An encoded matrix.

    `raw` contains the blocks, uint8 `[nbytes]`, and `cost` is the sum of squared output errors.
    `kept` is the number of rows that use the scales of the base instead of new ones.
    """

    raw: np.ndarray
    cost: float
    kept: int


class Rounder:
    """An encoder that rounds the matrices of a model, block by block in ascending order.

    `kept` is the number of rows for which `round` used the scales of the base, and `renewed` is the
    number of rows with new scales.
    """

    def __init__(self, inputs: BlockInputs) -> None:
        self._inputs = inputs
        self._factors: dict[int, Factor] = {}
        self.kept = self.renewed = 0

    def takes(self, name: str, type_id: int) -> bool:
        """Return whether this encoder can round the tensor to this type."""
        return rounds(name, type_id)

    def round(self, name: str, type_id: int, w: np.ndarray, base: np.ndarray | None) -> np.ndarray:
        """Encode w (float32 `[R, n]`) as uint8 `[nbytes]`, and update `kept` and `renewed`.

        The arguments and errors are the same as for `encode`.
        """
        made = self.encode(name, type_id, w, base)
        self.kept += made.kept
        self.renewed += len(w) - made.kept
        return made.raw

    def encode(self, name: str, type_id: int, w: np.ndarray, base: np.ndarray | None) -> Encoded:
        """Round w (float32 `[R, n]`), choosing the better set of scales for each row.

        `base` contains the tensor's blocks before the merge, or is None if their type differs. In
        this case, only new scales are used. Raises ValueError for weights that cannot be
        encoded, and for a tensor in an earlier block than that of the previous call.
        """
        factor = self.factor(name)
        found, costs = [], []
        for raw in ([] if base is None else [np.asarray(base)]) + [quantise(type_id, w)]:
            rounded = round_matrix(w, grid_of(type_id, raw, w.shape), factor)
            found.append(with_codes(type_id, raw, rounded.codes).reshape(len(w), -1))
            costs.append(rounded.cost)
        if base is None:
            return Encoded(found[0].reshape(-1), float(costs[0].sum()), 0)
        old = costs[0] <= costs[1]
        raw = np.where(old[:, None], found[0], found[1]).reshape(-1)
        return Encoded(raw, float(np.minimum(*costs).sum()), int(old.sum()))

    def effect(self, name: str, pair: Pair, scale: float) -> float:
        """Return the squared contribution of a pair to the outputs, summed as in `Encoded.cost`."""
        factor = self.factor(name)
        a = np.float32(scale) * (pair.a[:, factor.order] @ factor.lower)  # (r, n)
        gram = pair.b.T @ pair.b
        return float(((gram @ a) * a).sum(axis=0) @ factor.importance)

    def lost(self, name: str, error: np.ndarray) -> float:
        """Return the squared effect of a weight error `[R, n]`, summed as in `Encoded.cost`."""
        factor = self.factor(name)
        moved = error[:, factor.order] @ factor.lower
        return float((moved * moved).sum(axis=0, dtype=np.float64) @ factor.importance)

    def factor(self, name: str) -> Factor:
        """Return the factorised second moments of a tensor's input, computed once per input."""
        where = input_of(name)
        if where is None:
            raise ValueError(f"{name} is not a linear layer of a block")
        layer, source = where
        if layer < self._inputs.layer:
            raise ValueError(f"{name} precedes the current block, {self._inputs.layer}")
        while self._inputs.layer < layer:
            self._factors.clear()
            self._inputs.advance()
        if source not in self._factors:
            if source not in self._inputs.moments:
                raise ValueError("the forward pass does not provide the input of this layer")
            # not used after the factorisation
            self._factors[source] = factorise(self._inputs.moments.pop(source))
        return self._factors[source]
