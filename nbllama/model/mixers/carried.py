"""What sequences carry into a batch, and behind it (generation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from nbllama.model.parts import BlockParts


class Carried(NamedTuple):
    """States of the sequences of a batch, by name, float32 `[S, ...]`: in front and behind."""

    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]


StateExchange = Callable[[int], Carried]
"""Takes a layer; gives its states, of which `after` is to be written."""


def carried(block: BlockParts, states: StateExchange | None) -> Carried | None:
    """Return the block's states; None where every sequence begins here.

    Raises ValueError for a sequence that goes on from an earlier token but has no state.
    """
    if states is not None:
        return states(block.layer)
    batch = block.batch
    firsts = batch.seq_offsets[:-1][np.diff(batch.seq_offsets) > 0]
    if batch.positions[firsts].any():
        raise ValueError("a sequence that goes on from another one needs its state")
    return None
