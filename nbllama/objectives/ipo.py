"""IPO, identity preference optimisation.

    h = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l))
    loss = (h - 1 / (2 b))^2            d loss / dh = 2 (h - 1 / (2 b))

w is the chosen answer, l the rejected one, b is `beta` (tau in the paper). The margin h has a
target, 1 / (2 b) nats, and is pulled back if it exceeds the target: unlike with DPO, pairs that all
agree do not drive the margin to infinity. The reward of an answer is b (log pi - log ref), so the
target in rewards is 1/2.

As in the paper, log pi is the sum over the tokens. (TRL averages over the tokens of each answer, so
its beta has a different meaning.)

Source: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences"
(2023), equation 17.
"""

from __future__ import annotations

from nbllama.objectives.sides import PairLoss, Sides


def ipo(sides: Sides, *, beta: float) -> PairLoss:
    """Return each pair's loss and derivatives."""
    chosen = sides.chosen - sides.ref_chosen
    rejected = sides.rejected - sides.ref_rejected
    miss = chosen - rejected - 1 / (2 * beta)
    return PairLoss(miss**2, 2 * miss, -2 * miss, beta * chosen, beta * rejected)
