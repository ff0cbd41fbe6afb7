"""KTO, Kahneman-Tversky optimisation, which uses answers labelled good or bad instead of pairs.

    r = log pi(y|x) - log ref(y|x)
    good:  loss = 1 - sigmoid(b (r - z))        d loss / d log pi = -b s (1 - s)
    bad:   loss = 1 - sigmoid(b (z - r))        d loss / d log pi = +b s (1 - s)

where s is the sigmoid in the loss, and b is `beta`. The reference point z is an estimate of the
divergence KL(pi || ref), which measures how far the model has moved from the reference overall. z
is the mean of log pi(y'|x) - log ref(y'|x) over answers y' that belong to other prompts, or 0 if
this mean is negative. No gradient flows through z. (The factors lambda_D and lambda_U in the paper
correspond to the record weights.) The reward of an answer is b r.

Source: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (2024),
equations 7 and 8. The estimate of z is from section 4.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.objectives.sides import sigmoid


class LabelLoss(NamedTuple):
    """The losses of n answers, their derivatives with respect to log pi, and the rewards.

    All arrays are float64 `[n]`.
    """

    loss: np.ndarray
    d_answer: np.ndarray
    reward: np.ndarray


def kto_reference_point(policy: np.ndarray, reference: np.ndarray) -> float:
    """Estimate z from the log-probabilities `[n]` of answers that belong to other prompts."""
    return max(0.0, float((policy - reference).mean()))


def kto(
    policy: np.ndarray, reference: np.ndarray, good: np.ndarray, *, beta: float, z: float
) -> LabelLoss:
    """Return the loss and derivative for each answer.

    `policy` and `reference` are log-probabilities, float64 `[n]`, `good` is bool `[n]`, and `z` is
    the reference point.
    """
    r = policy - reference
    sign = np.where(good, 1.0, -1.0)
    s = sigmoid(sign * beta * (r - z))
    return LabelLoss(1 - s, -sign * beta * s * (1 - s), beta * r)
