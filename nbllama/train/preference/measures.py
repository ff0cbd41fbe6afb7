"""Measures of training on preferences: margin, accuracy, log-probabilities and answer lengths."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

STEPS = 10  # number of recent steps on which a warning is based
FALLEN = 0.1  # warn if chosen and rejected answers both lose more than this many nats per token
# Warn if the mean margin exceeds this value. sigmoid(-10) is 5e-5, so the gradient is almost 0.
RUNAWAY = 10.0


class Measured:
    """Sums over the good (chosen) and the bad (rejected) answers of a step or an evaluation."""

    def __init__(self, labels: bool) -> None:
        self._labels = labels
        self.count = np.zeros(2)
        self.policy, self.change, self.tokens, self.reward = np.zeros((4, 2))
        self._right = self._judged = 0

    def add(
        self,
        policy: np.ndarray,
        reference: np.ndarray,
        n: np.ndarray,
        good: np.ndarray,
        *,
        reward: np.ndarray,
        z: float,
    ) -> None:
        """Add the answers in a micro-batch; `z` is the reference point for KTO.

        All arrays are `[S]`, with one value per answer.
        """
        for side, on in enumerate((good, ~good)):
            self.count[side] += np.count_nonzero(on)
            self.policy[side] += policy[on].sum()
            self.change[side] += (policy - reference)[on].sum()
            self.tokens[side] += n[on].sum()
            self.reward[side] += reward[on].sum()
        if self._labels:
            change = policy - reference
            self._right += int(np.count_nonzero((change > z) == good))
            self._judged += len(good)
        else:
            self._right += int(np.count_nonzero(reward[::2] > reward[1::2]))
            self._judged += len(good) // 2

    def plus(self, part: Measured) -> None:
        """Add the sums from another `Measured`."""
        self.count += part.count
        self.policy += part.policy
        self.change += part.change
        self.tokens += part.tokens
        self.reward += part.reward
        self._right += part._right
        self._judged += part._judged

    def numbers(self) -> dict[str, float]:
        """Return the means, leaving out any for which there are no answers.

        - margin: reward of the chosen answers minus reward of the rejected answers
        - accuracy: share of pairs in which the chosen answer has the higher reward; for labelled
          answers, the share on the right side of the reference point
        - logp_chosen, logp_rejected: log-probability of an answer, in nats
        - tokens_chosen, tokens_rejected: number of tokens in an answer
        """
        found: dict[str, float] = {}
        if not self._judged:
            return found
        if self.count.all():
            means = self.reward / self.count
            found["margin"] = float(means[0] - means[1])
        found["accuracy"] = self._right / self._judged
        for side, name in enumerate(("chosen", "rejected")):
            if self.count[side]:
                found[f"logp_{name}"] = float(self.policy[side] / self.count[side])
                found[f"tokens_{name}"] = float(self.tokens[side] / self.count[side])
        return found


class Seen:
    """The most recent steps of a run, and the warnings about them.

    If `refers` is true, changes are measured relative to the reference; otherwise, relative
    to the first steps.
    """

    def __init__(self, refers: bool) -> None:
        self._refers = refers
        self._first: np.ndarray | None = None
        self._changes: deque[np.ndarray] = deque(maxlen=STEPS)
        self._margins: deque[float] = deque(maxlen=STEPS)
        self._warned: set[str] = set()

    def step(self, measured: Measured) -> Sequence[str]:
        """Add a step, and return any new warnings."""
        if not measured.count.all() or not np.isfinite(measured.policy).all():
            return ()
        of = measured.change if self._refers else measured.policy
        self._changes.append(of / measured.tokens)
        self._margins.append(measured.numbers()["margin"])
        if len(self._changes) < STEPS:
            return ()
        mean, margin = np.mean(self._changes, axis=0), float(np.mean(self._margins))
        if self._first is None:
            self._first = np.zeros(2) if self._refers else mean
        change = mean - self._first
        lines = []
        if (change < -FALLEN).all() and "fallen" not in self._warned:
            self._warned.add("fallen")
            lines.append(
                "warning: chosen and rejected answers are both becoming less likely (by "
                f"{-change[0]:.2f} and {-change[1]:.2f} nats per token), so the model is moving "
                "away from both; try --sft-weight 1, a lower --lr or a higher --beta"
            )
        if margin > RUNAWAY and "runaway" not in self._warned:
            self._warned.add("runaway")
            lines.append(
                f"warning: the margin is very large ({margin:.1f}), so the pairs are already "
                "separated, and further training changes the model without benefit; try fewer "
                "epochs, a lower --lr or --objective ipo"
            )
        return lines
