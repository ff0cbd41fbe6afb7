"""ORPO, odds ratio preference optimisation, which needs no reference.

    p(y) = exp(log pi(y) / |y|)         log odds(y) = log p(y) - log(1 - p(y))
    r = log odds(w) - log odds(l)       loss = -b log sigmoid(r)

Here w is the chosen answer, l is the rejected answer, |y| is the number of tokens in an answer, and
b is `beta` (lambda in the paper). With m = log pi(y) / |y|,

    d log odds / dm = 1 / (1 - p)       d loss / dr = -b sigmoid(-r)
    d loss / d log pi(w) = -b sigmoid(-r) / ((1 - p(w)) |w|)

and d loss / d log pi(l) is the same with l instead of w and the opposite sign. The loss in the
paper also contains the negative log-likelihood of the chosen answer, which is the `supervised` term
with weight 1. The reward of an answer is b log pi / |y|.

Source: Hong, Lee and Thorne, "ORPO: Monolithic Preference Optimization without Reference Model"
(2024), equations 4 to 7.
"""

from __future__ import annotations

import numpy as np

from nbllama.objectives.sides import PairLoss, Sides, log_sigmoid, sigmoid

LARGEST = -1e-12  # bound for m, because a probability of exactly 1 has infinite odds


def orpo(sides: Sides, *, beta: float) -> PairLoss:
    """Return the loss and derivatives for each pair, without the `supervised` term."""
    chosen = np.minimum(sides.chosen / sides.n_chosen, LARGEST)
    rejected = np.minimum(sides.rejected / sides.n_rejected, LARGEST)
    # -expm1(m) is 1 - p, and accurate even if p is almost 1
    r = (chosen - np.log(-np.expm1(chosen))) - (rejected - np.log(-np.expm1(rejected)))
    dr = -beta * sigmoid(-r)
    return PairLoss(
        -beta * log_sigmoid(r),
        dr / (-np.expm1(chosen) * sides.n_chosen),
        -dr / (-np.expm1(rejected) * sides.n_rejected),
        beta * chosen,
        beta * rejected,
    )
