"""Gradient and update norms, for each kind of tensor and each block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import slot_of


def _square(x: np.ndarray) -> float:
    flat = x.reshape(-1)
    # einsum uses one thread and makes no copy; float32 is precise enough for a colour
    return float(np.einsum("i,i->", flat, flat))


class Norms:
    """Gradient and update norms for the pairs of an adapter.

    `take_before` copies the parameters, always into the same memory, and `row` compares the current
    parameters with these copies.
    """

    def __init__(self, adapter: Adapter, n_layer: int) -> None:
        self._adapter, self._n_layer = adapter, n_layer
        self._before: dict[str, np.ndarray] = {}

    def take_before(self) -> None:
        """Copy the current parameters."""
        for name, x in self._adapter.parameters().items():
            if name in self._before:
                np.copyto(self._before[name], x)
            else:
                self._before[name] = x.copy()

    def row(self, iteration: int, gradients: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Build the `norms` row of an iteration; call `take_before` before the iteration.

        For each kind of tensor, the row contains two lists of L2 norms, one for the gradients
        (before clipping) and one for the updates. Each list has one norm per block, taken over both
        A and B of a pair. The norm at index `blocks` is for a tensor outside the blocks.
        """
        gradient: dict[str, list[float | None]] = {}
        update: dict[str, list[float | None]] = {}
        parameters = self._adapter.parameters()
        for base in self._adapter.pairs:
            names = [f"{base}.lora_{half}" for half in "ab"]
            g = math.sqrt(sum(_square(gradients[name]) for name in names))
            for name in names:
                np.subtract(parameters[name], self._before[name], out=self._before[name])
            u = math.sqrt(sum(_square(self._before[name]) for name in names))
            kind, block = self._place(base)
            for rows, value in ((gradient, g), (update, u)):
                row = rows.setdefault(kind, [])
                row += [None] * (block + 1 - len(row))
                row[block] = float(f"{value:.4g}") if math.isfinite(value) else None
        return {
            "event": "norms", "iter": iteration, "blocks": self._n_layer,
            "gradient": gradient, "update": update,
        }  # fmt: skip

    def _place(self, base: str) -> tuple[str, int]:
        """Return the kind of a tensor, such as attn_q, and its index in the list of norms."""
        found = slot_of(base)
        bare = base.removesuffix(".weight")
        if found is not None and found[0].in_block:
            return bare.split(".", 2)[2], found[1]
        return bare, self._n_layer
