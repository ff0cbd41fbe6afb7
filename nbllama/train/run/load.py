"""How evenly an iteration used the experts of a mixture, for the log."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.train.trainer import Trainer


def load_row(trainer: Trainer) -> dict[str, Any] | None:
    """Return the row `experts` of the last iteration; None for a model without experts.

    `first`: the lowest block that is counted. `busiest`: for each block, the most tokens that one
    expert processed, divided by the mean over experts. `idle`: for each block, the number of
    experts without a token. The choices of a frozen router change only with its input, so if
    `busiest` grows from step to step, training changes that input.
    """
    load, experts = trainer.bound.load, trainer.model.hp.experts
    if load is None or experts is None:
        return None
    first = experts.first
    if trainer.trunk is not None:  # the blocks below are not computed each time
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
