"""Who may look at what the passes compute: the hook that `nbllama.peek` uses.

`Weights.watch` is None except while someone watches. At each named result the passes ask that one
question; nothing is copied, kept or computed for a watcher that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nbllama.ops.cross_entropy import cross_entropy_grad_ref, cross_entropy_ref

if TYPE_CHECKING:
    from nbllama.data.batch import Batch


class Watcher(Protocol):
    """What the passes call.

    Arrays are theirs: they are overwritten later, and must not be changed. Names are llama.cpp's;
    `layer` is -1 outside of the blocks.
    """

    def begin(self, bound: Any, batch: Batch) -> None:
        """Begin a forward pass with a `nbllama.model.bound.Bound`."""

    def wants(self, name: str, layer: int = -1) -> bool:
        """Whether it is worth computing something that the passes do not need."""

    def node(self, name: str, layer: int, x: np.ndarray) -> None:
        """See a result of the forward pass, one row a token."""

    def attention(
        self,
        layer: int,
        q: np.ndarray,
        k: np.ndarray,
        *,
        q_offsets: np.ndarray,
        k_offsets: np.ndarray,
    ) -> None:
        """See queries `[N, H, D]` and keys `[Nk, G, D]` of a block, sequence by sequence."""

    def gradient(self, name: str, layer: int, dx: np.ndarray) -> None:
        """See the gradient of the loss with respect to a result of the forward pass."""


TOP_NODES = ("result_norm", "result_output", "result_output.grad", "loss")
"""What `show_loss` shows, and the logits that it is given."""


def show_loss(watch: Watcher, logits: np.ndarray, batch: Batch, weight: float | np.ndarray) -> None:
    """Show the loss of each trained token, and the gradient with respect to the logits `[N, V]`.

    That is the gradient of `weight` (a number, or one for each trained token) times the losses, in
    sum.
    """
    z, rows = logits.astype(np.float64), batch.targets >= 0
    targets = batch.targets[rows]
    watch.node("loss", -1, cross_entropy_ref(z[rows], targets).astype(np.float32))
    z[rows] = np.reshape(weight, (-1, 1)) * cross_entropy_grad_ref(1.0, z[rows], targets)
    z[~rows] = 0
    watch.gradient("result_output", -1, z.astype(np.float32))
