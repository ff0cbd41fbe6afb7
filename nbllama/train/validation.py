"""The validation state of a run: the lowest loss, when it was reached, and signs of overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

OVERFITTING = 2  # consecutive evaluations in which training loss falls and validation loss rises


@dataclass
class Validation:
    """The state between evaluations; all fields are numbers, so a checkpoint can store them."""

    last: int = -1  # iteration of the last evaluation, or -1 before the first
    best: float = 0.0  # lowest validation loss
    best_at: int = -1  # iteration of the lowest loss, or -1 if there is none yet
    since: int = 0  # number of evaluations since the best one
    previous: float = 0.0  # validation loss of the last evaluation
    previous_trained: float = 0.0  # mean training loss before the last evaluation
    sum: float = 0.0  # training loss since the last evaluation, weighted by trained tokens
    tokens: int = 0  # number of trained tokens in `sum`
    rises: int = 0  # number of consecutive evaluations that show overfitting, see `OVERFITTING`

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Validation:
        """Restore a state from its `numbers`."""
        made = cls()
        for f in fields(cls):
            kind = type(getattr(made, f.name))
            setattr(made, f.name, kind(numbers.get(f.name, getattr(made, f.name))))
        return made

    def numbers(self) -> dict[str, float]:
        """Return all fields as numbers, for a checkpoint."""
        return {k: float(v) for k, v in asdict(self).items()}

    def trained(self, loss: float, tokens: int) -> None:
        """Add the per-token loss of a training step."""
        if math.isfinite(loss):
            self.sum += loss * tokens
            self.tokens += tokens

    @property
    def training_loss(self) -> float:
        """Return the mean training loss since the last evaluation, or NaN if there was no step."""
        return self.sum / self.tokens if self.tokens else math.nan

    def improves(self, loss: float) -> bool:
        """Return whether `loss` is the lowest so far."""
        return math.isfinite(loss) and (self.best_at < 0 or loss < self.best)

    def evaluated(self, iteration: int, loss: float, best: bool) -> bool:
        """Add an evaluation, recorded as the best if `best`; return whether the run overfits."""
        mean, first = self.training_loss, self.last < 0 or not self.previous_trained
        if best:
            self.best, self.best_at, self.since = loss, iteration, 0
        else:
            self.since += 1
        worse = not first and loss > self.previous and mean < self.previous_trained
        self.rises = self.rises + 1 if worse else 0
        self.previous = loss if math.isfinite(loss) else 0.0
        self.previous_trained = mean if math.isfinite(mean) else 0.0
        self.restart(iteration)
        return self.rises == OVERFITTING

    def restart(self, iteration: int) -> None:
        """Start a new mean of the training loss after an evaluation."""
        self.last, self.sum, self.tokens = iteration, 0.0, 0

    def ended(self, patience: int) -> str:
        """Return why the run should end, or "" if it should continue."""
        if 0 < patience <= self.since:
            return f"no lower validation loss in {self.since} evaluations (--early-stop)"
        return ""


def perplexity(loss: float) -> float:
    """Return e^loss, or infinity if it is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def batches(
    lengths: tuple[np.ndarray, np.ndarray], most_tokens: int, most_trained: int
) -> list[list[int]]:
    """Group the sample indices, in order, into the largest batches that both bounds allow."""
    found: list[list[int]] = []
    in_tokens = in_trained = 0
    for i, (tokens, trained) in enumerate(zip(*(part.tolist() for part in lengths), strict=True)):
        in_tokens, in_trained = in_tokens + tokens, in_trained + trained
        if not found or in_tokens > most_tokens or in_trained > most_trained:
            found.append([])
            in_tokens, in_trained = tokens, trained
        found[-1].append(i)
    return found
