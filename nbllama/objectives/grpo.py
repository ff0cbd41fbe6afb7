"""GRPO, group relative policy optimisation, which trains on rewards for the model's own answers.

For each prompt, the model generates G answers, which receive the rewards r_1 .. r_G. The advantage
of an answer, which is the same for all of its tokens, compares the answer with the rest of its
group:

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)         0 if all rewards of the group are equal

For each token, log pi is the current log-probability, log old is the log-probability when the
answer was sampled, and log ref is the log-probability under the reference:

    q = exp(log pi - log old)                       the ratio
    d = log ref - log pi
    k = exp(d) - d - 1                              estimate of KL(pi || ref), never below 0
    loss = -min(q A, clip(q, 1 - c, 1 + c) A) + b k

where c is `clip` and b is `beta`. Since dq / d log pi = q,

    d loss / d log pi = -q A  (0 where the clip applies)  + b (1 - exp(d))

The clip applies if A > 0 and q > 1 + c, or if A < 0 and q < 1 - c. In these cases, q is already
beyond the limit, and the loss does not push it further. If the answers are sampled from the model
that the step updates, log old = log pi and q is 1.

The loss of a step is the mean over the tokens of all answers. (The paper first averages over each
answer, which gives less weight to tokens in long answers.)

Source: Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models" (2024), equations 3, 4 and 21. The estimate k is from Schulman, "Approximating KL
divergence" (2020). The mean over all tokens is from Yu et al., "DAPO: An Open-Source LLM
Reinforcement Learning System at Scale" (2025), equation 8. As in TRL's GRPOTrainer with the loss
type "dapo", std(r) is computed with the denominator G - 1, and 1e-4 is added to the result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CLIP = 0.2
SMALL = 1e-4  # added to the standard deviation


class TokenLosses(NamedTuple):
    """The loss, d loss / d log pi, and the KL estimate k for n tokens, each float64 `[n]`."""

    loss: np.ndarray
    slope: np.ndarray
    kl: np.ndarray


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Return the advantages of a group, float64 `[G]`, given its rewards, float64 `[G]`."""
    if len(rewards) < 2 or (rewards == rewards[0]).all():
        return np.zeros(len(rewards))
    found: np.ndarray = (rewards - rewards.mean()) / (rewards.std(ddof=1) + SMALL)
    return found


def grpo(
    policy: np.ndarray,
    old: np.ndarray,
    reference: np.ndarray,
    advantage: np.ndarray,
    *,
    beta: float,
    clip: float = CLIP,
) -> TokenLosses:
    """Return the loss and derivative for each token.

    `policy`, `old` and `reference` are log-probabilities, float64 `[n]`. `advantage`, float64
    `[n]`, is the advantage of the answer that each token belongs to. If `beta` is 0, the reference
    has no effect on the loss.
    """
    q = np.exp(policy - old)
    free, held = q * advantage, np.clip(q, 1 - clip, 1 + clip) * advantage
    d = reference - policy
    grown = np.exp(d)
    kl = grown - d - 1
    slope = np.where(free <= held, -free, 0.0)
    if not beta:
        return TokenLosses(-np.minimum(free, held), slope, kl)
    return TokenLosses(-np.minimum(free, held) + beta * kl, slope + beta * (1 - grown), kl)
