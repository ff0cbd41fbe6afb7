"""The states of sequences in blocks without attention.

A state summarises all previous tokens. States of earlier positions are not kept, so a
sequence can only be extended or restarted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nbllama.arch import Hparams
from nbllama.model.mixer_shapes import state_shapes
from nbllama.model.mixers import Carried


def state_floats(hp: Hparams) -> int:
    """Return the number of floats in the states of one sequence."""
    shapes = (shape for i in range(hp.n_layer) for shape in state_shapes(hp, i).values())
    return sum(int(np.prod(shape)) for shape in shapes)


class States:
    """The states of `rows` sequences, as float32 arrays `[rows, ...]`, which are initially zero.

    `commit` replaces the old states with the new ones when all blocks are done. It also increases
    `version`, because it can replace the arrays.
    """

    def __init__(self, hp: Hparams, rows: int) -> None:
        self._arrays = [
            {name: np.zeros((rows, *shape), np.float32) for name, shape in of.items()}
            for of in (state_shapes(hp, layer) for layer in range(hp.n_layer))
        ]
        self._count = rows
        self.version = 0
        self.begin(range(rows))

    @property
    def nbytes(self) -> int:
        """Size of all states in bytes."""
        return sum(a.nbytes for of in self._arrays for a in of.values())

    def begin(self, rows: Sequence[int]) -> None:
        """Set which sequences the next batch contains, in order."""
        self._new: dict[int, Carried] = {}
        self._rows = list(rows)
        self._all = self._rows == list(range(self._count))

    def exchange(self, layer: int) -> Carried:
        """Return a block's states before a batch, and memory for the states after the batch."""
        of = self._arrays[layer]
        before = of if self._all else {name: a[self._rows] for name, a in of.items()}
        carried = Carried(before, {name: np.empty_like(a) for name, a in before.items()})
        self._new[layer] = carried
        return carried

    def arrays(self, layer: int) -> Mapping[str, np.ndarray]:
        """Return a block's states `[rows, ...]` by name; they are valid until `version` changes."""
        return self._arrays[layer]

    def commit(self) -> None:
        """Replace the old states of the batch's sequences with the new ones."""
        self.version += 1
        for layer, carried in self._new.items():
            if self._all:
                self._arrays[layer] = dict(carried.after)
                continue
            for name, a in carried.after.items():
                self._arrays[layer][name][self._rows] = a
        self._new = {}

    def copy_first(self) -> None:
        """Copy the state of the first sequence to all other sequences."""
        for of in self._arrays:
            for a in of.values():
                a[1:] = a[:1]

    def copy(self, first: int, others: slice) -> None:
        """Copy the state of one sequence to other sequences."""
        for of in self._arrays:
            for a in of.values():
                a[others] = a[first]

    def clear(self) -> None:
        """Set all states to zero, as at the start of a sequence."""
        for of in self._arrays:
            for a in of.values():
                a.fill(0)
