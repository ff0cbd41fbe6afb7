"""Prompts of random tokens, and rewards without a child process."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from nbllama.data.prompts import Prompts, Question
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.train.reward.loss import RewardLoss, RewardNumbers
from nbllama.train.reward.scorer import Failed
from nbllama.train.trainer import Trainer
from tests.train.toy_runs import toy_adapter, trainer


class Marks:
    """A scorer: 0 to 4 by the answer's text; every `fails`-th answer has no reward."""

    def __init__(self, fails: int = 0) -> None:
        self.seen: list[str] = []
        self._fails = fails

    def score(self, prompt: Any, answer: str, record: Any, check: Any = None) -> float | Failed:
        self.seen.append(answer)
        if self._fails and len(self.seen) % self._fails == 0:
            return Failed("ValueError: it failed")
        return float(zlib.crc32(answer.encode()) % 5)


def prompts(model: Model, n: int = 3, *, group: int = 4, most: int = 6) -> Prompts:
    """`n` prompts of different lengths."""
    rng = np.random.default_rng(6)
    questions = []
    for i in range(n):
        ids = rng.integers(3, model.hp.n_vocab, 3 + 2 * i).astype(np.int32)
        questions.append(Question(ids, f"prompt {i}", {"number": i}, f"line {i + 1}", False))
    return Prompts(tuple(questions), group, most, 64)


def made(
    model: Model,
    *,
    beta: float = 0.1,
    reference: Adapter | None = None,
    scorer: Any = None,
    data: Prompts | None = None,
    **options: Any,
) -> Trainer:
    """A trainer on rewards."""
    data = prompts(model) if data is None else data
    scorer = Marks() if scorer is None else scorer
    objective = RewardLoss(RewardNumbers(beta), scorer, reference)
    standard = {"batch": data.n_samples, "share_prompts": True, "seed": 7}
    options = standard | options
    seed = options["seed"]
    t = trainer(model, toy_adapter(model), data, objective=objective, **options)
    t.seed = seed
    objective.start(t, None, lambda line: None)
    return t
