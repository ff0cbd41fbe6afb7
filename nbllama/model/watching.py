"""Who may look at what the passes compute: the hook that `nbllama.peek` hangs on.

`Weights.watch` is None but while someone watches. At each named result the passes ask that one
question; nothing is copied, kept or computed for a watcher that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from nbllama.data.batch import Batch


class Watcher(Protocol):
    """What the passes call. Arrays are theirs: they are overwritten later, and must not be
    changed. Names are llama.cpp's; `layer` is -1 outside of the blocks.
    """

    def begin(self, bound: Any, batch: Batch) -> None:
        """A forward pass starts, with a `nbllama.model.bound.Bound`."""

    def wants(self, name: str, layer: int = -1) -> bool:
        """Whether it is worth computing something that the passes do not need."""

    def node(self, name: str, layer: int, x: np.ndarray) -> None:
        """A result of the forward pass, one row a token."""

    def attention(
        self,
        layer: int,
        q: np.ndarray,
        k: np.ndarray,
        q_offsets: np.ndarray,
        k_offsets: np.ndarray,
    ) -> None:
        """Queries `[N, H, D]` and keys `[Nk, G, D]` of a block, sequence by sequence."""

    def gradient(self, name: str, layer: int, dx: np.ndarray) -> None:
        """The gradient of the loss with respect to a result of the forward pass."""
