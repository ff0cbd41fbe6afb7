"""The hook through which `nbllama.peek` reads intermediate results of the passes.

`Weights.watch` is None unless a watcher is active. The passes check this attribute for each named
result. Without a watcher, they do not copy, store or compute anything for `nbllama.peek`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nbllama.ops.cross_entropy import cross_entropy_grad_ref, cross_entropy_ref

if TYPE_CHECKING:
    from nbllama.data.batch import Batch


class Watcher(Protocol):
    """An object to which the passes report intermediate results.

    A watcher must not modify the arrays, and must copy those that it keeps, because the passes
    overwrite them later. Names are the same as in llama.cpp; `layer` is -1 outside the blocks.
    """

    def begin(self, bound: Any, batch: Batch) -> None:
        """Begin a forward pass; `bound` is a `nbllama.model.bound.Bound`."""

    def wants(self, name: str, layer: int = -1) -> bool:
        """Return whether to compute a result that the passes themselves do not require."""

    def node(self, name: str, layer: int, x: np.ndarray) -> None:
        """Receive a result of the forward pass, which has one row per token."""

    def attention(
        self,
        layer: int,
        q: np.ndarray,
        k: np.ndarray,
        *,
        q_offsets: np.ndarray,
        k_offsets: np.ndarray,
    ) -> None:
        """Receive the queries `[N, H, D]` and keys `[Nk, G, D]` of a block."""

    def gradient(self, name: str, layer: int, dx: np.ndarray) -> None:
        """Receive the gradient of the loss with respect to a result of the forward pass."""


TOP_NODES = ("result_norm", "result_output", "result_output.grad", "loss")
"""The names of the results that `Model.logits` and `show_loss` pass to the watcher."""


def show_loss(watch: Watcher, logits: np.ndarray, batch: Batch, weight: float | np.ndarray) -> None:
    """Pass the per-token losses, and the gradient with respect to the logits, to the watcher.

    The logits are `[N, V]`. The gradient is that of the weighted sum of the losses; `weight` is
    either a single number or one number per trained token.
    """
    z, rows = logits.astype(np.float64), batch.targets >= 0
    targets = batch.targets[rows]
    watch.node("loss", -1, cross_entropy_ref(z[rows], targets).astype(np.float32))
    z[rows] = np.reshape(weight, (-1, 1)) * cross_entropy_grad_ref(1.0, z[rows], targets)
    z[~rows] = 0
    watch.gradient("result_output", -1, z.astype(np.float32))
