"""Matrices rounded so that the products are kept, with inputs from a sample of the training data.

Rounding to the nearest code gives most weights back as they were: an adapter changes them by less
than half a step. With error feedback (`nbllama.export.feedback`) a row's codes are chosen together.
Each row is rounded twice, onto the scales that the base has and onto new ones for the merged
weights, and the one with the smaller error of the products stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nbllama.export.feedback import Factor, factorise, round_matrix
from nbllama.export.grids import grid_of, has_grid, with_codes
from nbllama.export.inputs import BlockInputs, input_of
from nbllama.quants.encode import quantise


def rounds(name: str, type_id: int) -> bool:
    """Whether a tensor that becomes this type can be rounded with error feedback."""
    return input_of(name) is not None and has_grid(type_id)


class Rounder:
    """Rounds the matrices of a model, block by block in ascending order.

    `kept`, `renewed`: rows that stayed on the base's scales, and on new ones.
    """

    def __init__(self, inputs: BlockInputs, check: Callable[[], None] | None = None) -> None:
        self._inputs, self._factors = inputs, dict[int, Factor]()
        self.kept = self.renewed = 0

    def takes(self, name: str, type_id: int) -> bool:
        """Whether a tensor that becomes this type is rounded here."""
        return rounds(name, type_id)

    def round(
        self, name: str, type_id: int, w: np.ndarray, base: np.ndarray | None
    ) -> np.ndarray:
        """Encode w float32 `[R, n]`: uint8 `[nbytes]`. `base`: its blocks before the merge, where
        they are of the same type. Raises ValueError for weights that cannot be encoded, and for a
        block below that of the last call.
        """
        factor = self._factor(name)
        found, costs = [], []
        for raw in ([] if base is None else [base]) + [quantise(type_id, w)]:
            rounded = round_matrix(w, grid_of(type_id, raw, w.shape), factor)
            found.append(with_codes(type_id, np.asarray(raw), rounded.codes).reshape(len(w), -1))
            costs.append(rounded.cost)
        if base is None:
            self.renewed += len(w)
            return found[0].reshape(-1)
        old = costs[0] <= costs[1]
        self.kept += int(old.sum())
        self.renewed += int((~old).sum())
        return np.where(old[:, None], found[0], found[1]).reshape(-1)

    def _factor(self, name: str) -> Factor:
        where = input_of(name)
        if where is None:
            raise ValueError(f"{name} is no linear layer of a block")
        layer, source = where
        if layer < self._inputs.layer:
            raise ValueError(f"{name} comes after block {self._inputs.layer}")
        while self._inputs.layer < layer:
            self._factors.clear()
            self._inputs.advance()
        if source not in self._factors:
            # of no further use once it is factorised
            self._factors[source] = factorise(self._inputs.moments.pop(source))
        return self._factors[source]
