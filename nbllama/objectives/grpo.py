"""GRPO, group relative policy optimisation: the model's own answers, each with a reward.

For each prompt, the model writes G answers, and r_1 .. r_G are their rewards. The advantage of an
answer, the same for all of its tokens, compares it with the other answers of its group:

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)         0 if all rewards of the group are equal

For a token whose log-probability is log pi, was log old when the answer was sampled, and is log ref
under the reference:

    q = exp(log pi - log old)                       the ratio
    d = log ref - log pi
    k = exp(d) - d - 1                              estimate of KL(pi || ref), never below 0
    loss = -min(q A, clip(q, 1 - c, 1 + c) A) + b k

c is `clip`, b is `beta`. Since dq / d log pi = q,

    d loss / d log pi = -q A  (0 where the clip applies)  + b (1 - exp(d))

The clip applies if A > 0 and q > 1 + c, or if A < 0 and q < 1 - c: the answer has already become
that much more (or less) likely, and the loss does not push further. If the answers are drawn with
the parameters that are updated, log old = log pi, and q is 1.

A step's loss is the sum over the tokens of all answers, divided by the number of tokens. (The paper
averages over each answer first, which gives tokens of long answers a lower weight.)

Source: Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models" (2024), equations 3, 4 and 21; the estimate k: Schulman, "Approximating KL divergence"
(2020). The sum over all tokens: Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System
at Scale" (2025), equation 8. The standard deviation has n - 1 in its denominator, and 1e-4 is added
to it, as in TRL's GRPOTrainer with the loss type "dapo".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CLIP = 0.2
SMALL = 1e-4  # added to the standard deviation


class TokenLosses(NamedTuple):
    """Loss, d loss / d log pi, and the estimate k of the KL for n tokens, float64 `[n]` each."""

    loss: np.ndarray
    slope: np.ndarray
    kl: np.ndarray


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Return a group's advantages, float64 `[G]`, from its rewards, float64 `[G]`."""
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
    """Return each token's loss and derivative.

    policy, old, reference: log-probabilities, float64 `[n]`. advantage: that of each token's
    answer, float64 `[n]`. If `beta` is 0, the reference has no effect on the loss.
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
