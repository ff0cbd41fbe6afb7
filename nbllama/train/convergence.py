"""Three convergence tests that are applied to the loss after each evaluation and can end a run.

The tests come from llama.cpp's `ggml.c:ggml_opt_adam` and are applied in the order below. f is the
loss. Setting an option to 0 disables the corresponding test:

    |f - f of the previous evaluation| / f < epsf
    |f `past` evaluations ago - f| / f < delta
    the lowest loss is `max_no_improvement` evaluations old

All losses are float32, as in llama.cpp and in checkpoints. A loss that is not finite does not end a
run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Convergence:
    """The convergence tests and their state.

    `past_losses` is a ring buffer. The loss of evaluation e is stored at index (e - 1) % past, or
    at e % past if there is no previous loss, as in files written by the old tool. Evaluations are
    counted from 0, and the count continues when a run is resumed.
    """

    past: int = 0
    delta: float = 1e-5
    max_no_improvement: int = 0
    epsf: float = 0.0
    best: float = math.nan  # NaN before the first evaluation
    previous: float = math.nan
    no_improvement: int = 0
    past_losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.past_losses) != self.past:
            self.past_losses = [0.0] * self.past

    def reached(self, loss: float, evaluation: int) -> str:
        """Test the loss of an evaluation; return why the run should end, or "" if it should not.

        The loss of the first evaluation is only stored.
        """
        f = float(np.float32(loss))
        if not math.isfinite(f):
            return ""
        if math.isnan(self.previous):
            self.best = self.previous = f
            self._remember(f, evaluation)
            return ""
        reason = self._tests(f, evaluation)
        self._remember(f, evaluation - 1)
        self.previous = f
        return reason

    def _tests(self, f: float, evaluation: int) -> str:
        if abs(f - self.previous) < self.epsf * abs(f):
            return f"the relative change in the loss is below {self.epsf:g} (--adam-epsf)"
        if 0 < self.past <= evaluation - 1:
            before = self.past_losses[(evaluation - 1) % self.past]
            if abs(before - f) < self.delta * abs(f):
                return (
                    f"the relative change in the loss over {self.past} iterations is below "
                    f"{self.delta:g} (--opt-past)"
                )
        if self.max_no_improvement > 0:
            if f < self.best:
                self.best, self.no_improvement = f, 0
            else:
                self.no_improvement += 1
                if self.no_improvement >= self.max_no_improvement:
                    return (
                        f"the loss has not reached a new minimum in {self.no_improvement} "
                        "iterations (--opt-max-no-improvement)"
                    )
        return ""

    def _remember(self, f: float, slot: int) -> None:
        if self.past:
            self.past_losses[slot % self.past] = f
