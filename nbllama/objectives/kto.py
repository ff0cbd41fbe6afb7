"""KTO, Kahneman-Tversky optimisation: single answers that are good or bad, no pairs.

    r = log pi(y|x) - log ref(y|x)
    good:  loss = 1 - sigmoid(b (r - z))        d loss / d log pi = -b s (1 - s)
    bad:   loss = 1 - sigmoid(b (z - r))        d loss / d log pi = +b s (1 - s)

where s is the sigmoid in the loss, and b is `beta`. z is the reference point: how far the model has
moved from the reference in general, an estimate of the divergence KL(pi || ref). z is the mean of
log pi(y'|x) - log ref(y'|x) over answers y' that were written for other prompts, or 0 if this mean
is negative; no gradient goes through z. (The factors lambda_D and lambda_U of the paper are the
weights of records.) The reward of an answer is b r.

Source: Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (2024),
equations 7 and 8, and the estimate of section 4.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.objectives.sides import sigmoid


class LabelLoss(NamedTuple):
    """Loss of n answers, its derivative with respect to log pi, and rewards: float64 `[n]` each."""

    loss: np.ndarray
    d_answer: np.ndarray
    reward: np.ndarray


def kto_reference_point(policy: np.ndarray, reference: np.ndarray) -> float:
    """Return z from the log-probabilities `[n]` of answers after the wrong prompts."""
    return max(0.0, float((policy - reference).mean()))


def kto(
    policy: np.ndarray, reference: np.ndarray, good: np.ndarray, *, beta: float, z: float
) -> LabelLoss:
    """Return each answer's loss and derivative.

    policy, reference: log-probabilities float64 `[n]`, good: bool `[n]`, z: the reference point.
    """
    r = policy - reference
    sign = np.where(good, 1.0, -1.0)
    s = sigmoid(sign * beta * (r - z))
    return LabelLoss(1 - s, -sign * beta * s * (1 - s), beta * r)
