"""The sequence states that generation carries from one batch to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from nbllama.model.parts import BlockParts


class Carried(NamedTuple):
    """The states of S sequences before and after a batch, as float32 arrays `[S, ...]` by name."""

    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]


StateExchange = Callable[[int], Carried]
"""A function that returns the states of a layer; the caller of the function fills `after`."""


def carried(block: BlockParts, states: StateExchange | None) -> Carried | None:
    """Return the states of a block, or None if `states` is None.

    Raises ValueError if `states` is None but a sequence does not start at position 0.
    """
    if states is not None:
        return states(block.layer)
    batch = block.batch
    firsts = batch.seq_offsets[:-1][np.diff(batch.seq_offsets) > 0]
    if batch.positions[firsts].any():
        raise ValueError("a sequence that does not start at position 0 requires a stored state")
    return None
