"""Learning-rate schedules; to add a schedule, write a function and add a row to the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule for the learning rate (see `factor`).

    `kind` is a name in `SCHEDULES`. The factor rises over the first `warmup` updates. All kinds of
    decay reach `cos_decay_min` at update T (`cos_decay_steps`). With `enable_restart`, each cosine
    is followed by one `cos_decay_restart` times as long. `min_ratio` is the smallest factor. "wsd"
    decays over the last `wsd_decay` · T updates. T and `warmup` are counted from update `begin`.
    """

    kind: str = "cosine"
    warmup: int = 100
    cos_decay_steps: int = 1000
    cos_decay_min: float = 0.1
    cos_decay_restart: float = 1.1
    enable_restart: bool = False
    min_ratio: float = 0.0
    wsd_decay: float = 0.1
    begin: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule {self.kind!r} is not one of {', '.join(SCHEDULES)}")

    def factor(self, step: int) -> float:
        """Return the learning-rate factor for update number `step`, counted from 1.

            r = step / warmup      while step < warmup, then as given by `kind`
            factor = min_ratio + r (1 - min_ratio)

        This is the formula of llama.cpp's `common/train.cpp:learning_schedule`, evaluated at
        `step`. (The old tool evaluates it at `step` - 1. With warm-up, its first update therefore
        does nothing.)
        """
        step -= self.begin
        r = step / self.warmup if step < self.warmup else SCHEDULES[self.kind](self, step)
        return self.min_ratio + r * (1.0 - self.min_ratio)


def _constant(s: Schedule, step: int) -> float:
    """Return 1."""
    return 1.0


def _linear(s: Schedule, step: int) -> float:
    """Return the value on a straight line from 1 at `warmup` to `cos_decay_min` at T."""
    return _line(step, s.warmup, s.cos_decay_steps, s.cos_decay_min)


def _wsd(s: Schedule, step: int) -> float:
    """Return 1 up to (1 - wsd_decay) T, then values that fall linearly to `cos_decay_min` at T.

    WSD means warm-up, stable, decay (see "MiniCPM", Hu et al. 2024, section 4).
    """
    first = max(float(s.warmup), (1.0 - s.wsd_decay) * s.cos_decay_steps)
    return _line(step, first, s.cos_decay_steps, s.cos_decay_min)


def _cosine(s: Schedule, step: int) -> float:
    """Return the value on a half cosine from 1 to `cos_decay_min`.

    The cosine starts at step 0, or at step `warmup` if restarts are enabled. If the decay has 0
    steps, either from the start or after restarts, return the minimum.
    """
    length = s.cos_decay_steps
    if s.enable_restart:
        step -= s.warmup
        while 0 < length < step:
            before, length = length, int(s.cos_decay_restart * length)
            # skip all decays of equal length in a single step
            step = step - before if length != before else (step - 1) % length + 1
    if length <= 0:
        return s.cos_decay_min  # the limit as the decay becomes shorter; the formula gives 0 / 0
    t = min(step, length) / length
    return (1.0 - s.cos_decay_min) * 0.5 * (1.0 + math.cos(math.pi * t)) + s.cos_decay_min


def _line(step: int, first: float, last: int, minimum: float) -> float:
    """Return 1 up to `first`, then values that fall linearly to `minimum` at `last`."""
    if step >= last:
        return minimum
    return 1.0 - (1.0 - minimum) * max(0.0, step - first) / (last - first)


SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
}
