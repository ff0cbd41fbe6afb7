"""The measures of a step in a run that trains on rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbllama.train.reward.drawn import Answer, GroupOf
from nbllama.train.reward.scorer import Failed


class KL(NamedTuple):
    """A sum of KL estimates, in nats, and the number of tokens in the sum."""

    total: float
    tokens: int


class RewardMeasures:
    """The measures of one step; `refers` says whether they include the KL to the reference."""

    def __init__(self, refers: bool) -> None:
        self._refers = refers
        self.groups: list[GroupOf] = []
        self.seconds = 0.0  # for drawing and scoring
        self._kl, self._tokens = 0.0, 0

    def add_kl(self, kl: np.ndarray) -> None:
        """Add the estimates for the tokens of a micro-batch."""
        self.plus_kl(KL(float(kl.sum()), len(kl)))

    def plus_kl(self, part: KL) -> None:
        """Add the sum from another `KL`."""
        self._kl += part.total
        self._tokens += part.tokens

    def take_kl(self) -> KL:
        """Return the sum so far, and reset it to 0."""
        found, self._kl, self._tokens = KL(self._kl, self._tokens), 0.0, 0
        return found

    @property
    def answers(self) -> list[Answer]:
        """Return all answers of the step."""
        return [a for group in self.groups for a in group.answers]

    @property
    def failed(self) -> list[tuple[GroupOf, Failed]]:
        """Return all answers without a reward, each with its group."""
        return [
            (group, a.reward)
            for group in self.groups
            for a in group.answers
            if isinstance(a.reward, Failed)
        ]

    def numbers(self) -> dict[str, float]:
        """Return the measures; the result is empty before the first step.

        - reward, reward_std: mean and standard deviation of all rewards
        - kl: mean over the tokens of all answers, in nats per token
        - answer_tokens: mean length of the answers
        - cut: share of answers that reached the maximum length
        - same: share of groups in which all rewards are equal
        - reward_errors: number of answers without a reward
        - answers_per_s: number of answers drawn and scored per second
        """
        answers = self.answers
        if not answers:
            return {}
        found: dict[str, float] = {}
        rewards = np.concatenate([group.rewards for group in self.groups])
        if len(rewards):
            found["reward"] = float(rewards.mean())
            found["reward_std"] = float(rewards.std())
        if self._refers and self._tokens:
            found["kl"] = self._kl / self._tokens
        found["answer_tokens"] = float(np.mean([len(a.ids) for a in answers]))
        found["cut"] = sum(a.cut for a in answers) / len(answers)
        found["same"] = sum(group.same for group in self.groups) / len(self.groups)
        found["reward_errors"] = float(len(self.failed))
        found["answers_per_s"] = len(answers) / max(self.seconds, 1e-9)
        return found


def two_of(groups: Sequence[GroupOf]) -> list[tuple[GroupOf, Answer]]:
    """Return the best and the worst answer in the first group whose rewards differ.

    If there is no such group, return the first two answers.
    """
    for group in groups:
        if not group.same:
            order = np.argsort(group.advantages, kind="stable")
            return [(group, group.answers[i]) for i in (order[-1], order[0])]
    return [(group, a) for group in groups for a in group.answers][:2]
