"""Arguments and results of pairwise losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Sides(NamedTuple):
    """Both answers of n pairs, as float64 arrays `[n]`.

    `chosen` and `rejected` are log pi(y|x) in nats, summed over the tokens of an answer.
    `ref_chosen` and `ref_rejected` are the same values under the reference. `n_chosen` and
    `n_rejected` are the numbers of tokens in the answers.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    n_chosen: np.ndarray
    n_rejected: np.ndarray


class PairLoss(NamedTuple):
    """The losses of n pairs and their derivatives, each float64 `[n]`.

    `d_chosen` and `d_rejected` are the derivatives with respect to each answer's log pi.
    `reward_chosen` and `reward_rejected` are the rewards as the method defines them. Their
    difference is the margin.
    """

    loss: np.ndarray
    d_chosen: np.ndarray
    d_rejected: np.ndarray
    reward_chosen: np.ndarray
    reward_rejected: np.ndarray


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    small: np.ndarray = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """Compute the logarithm of `sigmoid` without overflow."""
    found: np.ndarray = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))
    return found
