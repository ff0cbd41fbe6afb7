"""Learning-rate schedules: a factor for each update."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine", "wsd")


def _cosine(step: int, decay_steps: int, minimum: float) -> float:
    if decay_steps <= 0:
        return minimum  # the limit of ever shorter decays; the formula itself is 0 / 0
    t = min(step, decay_steps) / decay_steps
    return (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * t)) + minimum


def _linear(step: int, first: float, last: int, minimum: float) -> float:
    """1 up to `first`, straight down to `minimum` at `last`."""
    if step >= last:
        return minimum
    return 1.0 - (1.0 - minimum) * max(0.0, step - first) / (last - first)


def schedule(
    step: int,
    warmup: int = 100,
    cos_decay_steps: int = 1000,
    cos_decay_min: float = 0.1,
    cos_decay_restart: float = 1.1,
    enable_restart: bool = False,
    min_ratio: float = 0.0,
    kind: str = "cosine",
    wsd_decay: float = 0.1,
) -> float:
    """Factor on the learning rate of update `step` (the first is 1).

    Formulas of llama.cpp's `common/train.cpp:learning_schedule`, taken at the update itself
    (the old tool is one behind, so that its first update under warm-up does nothing):

        r = step / warmup                          while step < warmup
          = cosine(step)                           without restarts; from `step`, as the old tool
          = cosine(step - warmup)                  with restarts, each cycle `cos_decay_restart`
                                                   times as long as the one before
        factor = min_ratio + r (1 - min_ratio)

    The other kinds, with the same warm-up and end, T = cos_decay_steps:

        constant   r = 1
        linear     r falls straight from 1 at `warmup` to `cos_decay_min` at T
        wsd        r = 1 up to (1 - wsd_decay) T, then straight to `cos_decay_min` at T
                   (warm-up, stable, decay: "MiniCPM", Hu et al. 2024, section 4)

    where cosine falls from 1 to `cos_decay_min` within `cos_decay_steps`. `min_ratio`: smallest
    rate / rate. A decay over 0 steps (asked for, or shrunk to by restarts) is at its minimum.
    """
    if step < warmup:
        r = step / warmup
    elif kind == "constant":
        r = 1.0
    elif kind == "linear":
        r = _linear(step, warmup, cos_decay_steps, cos_decay_min)
    elif kind == "wsd":
        first = max(float(warmup), (1.0 - wsd_decay) * cos_decay_steps)
        r = _linear(step, first, cos_decay_steps, cos_decay_min)
    elif kind != "cosine":
        raise ValueError(f"schedule {kind!r} is none of {', '.join(SCHEDULES)}")
    elif enable_restart:
        step, length = step - warmup, cos_decay_steps
        while 0 < length < step:
            step -= length
            length = int(cos_decay_restart * length)
        r = _cosine(step, length, cos_decay_min)
    else:
        r = _cosine(step, cos_decay_steps, cos_decay_min)
    return min_ratio + r * (1.0 - min_ratio)
