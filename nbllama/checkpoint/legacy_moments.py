"""The order of the tensors inside the moment vectors of an old checkpoint.

The old tool's optimiser visits the parameters in the order of the compute graph, from the loss down
(`ggml.c:ggml_visit_parents`, `ggml_opt_adam`). The graph can be traversed in two directions,
and each run uses the direction that requires less memory. The graph also depends on whether flash
attention is used, which was the default in 2023. The file records neither the direction nor the use
of flash attention. However, the first moments are averages of past gradients: in the right order,
they point in nearly the same direction as the next gradient; in any other order, they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nbllama.checkpoint.state import FlatMoments, split
from nbllama.errors import CheckpointError
from nbllama.lora.pairs import Adapter

ORDERS = ("left", "right", "left-flash", "right-flash")
LEAST = 0.1  # minimum mean cosine of moments and gradient in the right order
MARGIN = 2.0  # minimum ratio between this cosine and the cosine for any other order


def _left(n_layer: int, flash: bool) -> list[str]:
    down = ["ffn_down", "ffn_gate", "ffn_norm", "attn_output", "attn_norm"]
    up = ["attn_v", "attn_k", "attn_q", "ffn_up"]
    if flash:
        down.insert(4, "attn_q")
        up = ["attn_k", "attn_v", "ffn_up"]
    names = ["output", "output_norm"]
    names += [f"blk.{i}.{name}" for i in reversed(range(n_layer)) for name in down]
    names.append("token_embd")
    return names + [f"blk.{i}.{name}" for i in range(n_layer) for name in up]


def _right(n_layer: int, flash: bool) -> list[str]:
    attention = ["attn_norm", "attn_q", "attn_k", "attn_v"]
    if flash:
        attention = ["attn_v", "attn_norm", "attn_k", "attn_q"]
    block = [*attention, "attn_output", "ffn_norm", "ffn_up", "ffn_gate", "ffn_down"]
    names = [f"blk.{i}.{name}" for i in range(n_layer) for name in block]
    return ["token_embd", *names, "output_norm", "output"]


def parameter_order(order: str, n_layer: int) -> list[str]:
    """Return all parameter names of a model with `n_layer` blocks, in the order of the moments.

    `order` is one of `ORDERS`.
    """
    direction, _, flash = order.partition("-")
    names = (_left if direction == "left" else _right)(n_layer, bool(flash))
    halves = ("lora_a", "lora_b") if direction == "left" else ("lora_b", "lora_a")
    return [f"{name}.weight.{half}" for name in names for half in halves]


class PlacedMoments(NamedTuple):
    """Moments by parameter name, in this program's orientation.

    `order` is their order in the file, and `cosine` is their `agreement` with the gradients.
    """

    m: dict[str, np.ndarray]
    v: dict[str, np.ndarray]
    order: str
    cosine: float


def agreement(
    m: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray], names: Iterable[str]
) -> float:
    """Return the mean cosine between moments and gradients over the tensors in `names`.

    Tensors with a single element are ignored because their cosine is always 1 or -1. Tensors whose
    moments or gradients are all zero are also ignored. The result is 0 if no tensors remain.
    """
    cosines = []
    for name in names:
        a, b = (x[name].astype(np.float64).ravel() for x in (m, grads))
        length = float(np.sqrt((a @ a) * (b @ b)))
        if length > 0 and a.size > 1:
            cosines.append(float(a @ b) / length)
    return float(np.mean(cosines)) if cosines else 0.0


def place_moments(
    moments: FlatMoments,
    adapter: Adapter,
    grads: Mapping[str, np.ndarray],
    n_layer: int,
    *,
    direction: str = "",
) -> PlacedMoments:
    """Assign the moments of an old checkpoint to their parameters.

    `grads` contains the gradient of the first batch after loading. If `direction` is "left" or
    "right", only the orders with that direction are tried, and the best of these orders is used.

    Raises `CheckpointError` if no order is clearly better than all others. Two orders are compared
    only on the tensors whose positions differ.
    """
    rows = []
    for order in ORDERS:
        if order.startswith(direction):
            m, v = (split(x, parameter_order(order, n_layer), adapter) for x in moments)
            rows.append(PlacedMoments(m, v, order, agreement(m, grads, m)))
    best = max(rows, key=lambda row: row.cosine)
    if direction or not moments.first.any():
        return best
    for other in rows:
        moved = [name for name, x in best.m.items() if not np.array_equal(x, other.m[name])]
        mine, its = (agreement(row.m, grads, moved) for row in (best, other))
        # "not above" instead of "below", so that NaN is also rejected
        if other is not best and not (mine >= LEAST and mine >= MARGIN * its):
            raise CheckpointError(
                "the order of the moments in the old checkpoint cannot be determined from the "
                f"gradients (mean cosine: {best.order} {mine:.2f}, {other.order} {its:.2f}); look "
                "for 'evaluation order' in the old log and pass --checkpoint-order left or right"
            )
    return best
