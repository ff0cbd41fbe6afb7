"""The arguments and results of pairwise losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Sides(NamedTuple):
    """Both answers of n pairs; all arrays are float64 `[n]`.

    chosen, rejected: log pi(y|x), nats, the sum over the tokens of an answer. ref_chosen,
    ref_rejected: the same under the reference. n_chosen, n_rejected: the number of tokens in the
    answers.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    n_chosen: np.ndarray
    n_rejected: np.ndarray


class PairLoss(NamedTuple):
    """Loss of n pairs and its derivatives, float64 `[n]` each.

    d_chosen, d_rejected: with respect to log pi of the two answers. reward_chosen, reward_rejected:
    what the method defines as an answer's reward; their difference is the margin.
    """

    loss: np.ndarray
    d_chosen: np.ndarray
    d_rejected: np.ndarray
    reward_chosen: np.ndarray
    reward_rejected: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)), without overflow."""
    small: np.ndarray = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute the logarithm of `sigmoid`, without overflow."""
    found: np.ndarray = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))
    return found
