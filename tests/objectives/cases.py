"""Fixed log-probabilities of answers, and the losses in plain formulas of one pair."""

from __future__ import annotations

import numpy as np

from nbllama.objectives.sides import Sides
from nbllama.train.preference.loss import Answers, Numbers

NUMBERS = {
    "dpo": Numbers("dpo", 0.1),
    "dpo, smoothed": Numbers("dpo", 0.5, label_smoothing=0.2),
    "dpo, with sft": Numbers("dpo", 0.1, sft_weight=0.7),
    "ipo": Numbers("ipo", 0.2),
    "orpo": Numbers("orpo", 0.3, sft_weight=1.0),
    "simpo": Numbers("simpo", 2.0, margin=0.8),
    "simpo, smoothed": Numbers("simpo", 2.5, margin=1.2, label_smoothing=0.1),
    "kto": Numbers("kto", 0.3),
    "kto, with sft": Numbers("kto", 0.3, sft_weight=0.4),
}
Z = 0.6  # KTO's reference point


def answers(n: int = 6, seed: int = 4) -> Answers:
    """`n` pairs as 2n answers; some log-probabilities are tiny, some answers long."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, 2 * n)
    policy = -rng.gamma(2.0, 0.6, 2 * n) * tokens
    policy[0], policy[3] = -1e-3, -90.0
    reference = policy + rng.standard_normal(2 * n) * 3
    return Answers(
        policy, reference, tokens, np.arange(2 * n) % 2 == 0, np.repeat(rng.uniform(0.5, 2, n), 2)
    )


def sides_of(a: Answers) -> Sides:
    return Sides(
        a.policy[::2], a.policy[1::2], a.reference[::2], a.reference[1::2], a.n[::2], a.n[1::2]
    )
