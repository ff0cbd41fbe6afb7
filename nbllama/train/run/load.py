"""A log row that shows how evenly an iteration used the experts of an MoE model."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.train.trainer import Trainer


def load_row(trainer: Trainer) -> dict[str, Any] | None:
    """Return the `experts` row for the last iteration, or None for a model without experts.

    `first` is the lowest block that is counted. For each block, `busiest` is the largest number of
    tokens that any expert processed, divided by the mean over all experts. `idle` is the number of
    experts that processed no tokens. Because the router is frozen, its choices change only with its
    input. If `busiest` grows from step to step, training is therefore changing that input.
    """
    load, experts = trainer.bound.load, trainer.model.hp.experts
    if load is None or experts is None:
        return None
    first = experts.first
    if trainer.trunk is not None:  # lower blocks are not computed in every iteration
        first = max(first, trainer.trunk.layer)
    blocks = load[first:]
    if not len(blocks):
        return None
    mean = np.maximum(blocks.mean(axis=1), 1e-9)
    return {
        "event": "experts",
        "iter": trainer.iteration,
        "first": first,
        "busiest": [round(float(x), 2) for x in blocks.max(axis=1) / mean],
        "idle": [int(n) for n in (blocks == 0).sum(axis=1)],
    }
