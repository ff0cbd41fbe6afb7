"""IPO, identity preference optimisation.

    h = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l))
    loss = (h - 1 / (2 b))^2            d loss / dh = 2 (h - 1 / (2 b))

Here w is the chosen answer, l is the rejected answer, and b is `beta` (tau in the paper). The
target for the margin h is 1 / (2 b) nats, and a margin above the target is pulled back. Unlike in
DPO, the margin does not grow without bound, even if the preferences are deterministic. The reward
of an answer is b (log pi - log ref), so the target for the difference in rewards is 1/2.

As in the paper, log pi is the sum over the tokens of an answer. (TRL averages over the tokens
instead, so its beta has a different meaning.)

Source: Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences"
(2023), equation 17.
"""

from __future__ import annotations

from nbllama.objectives.sides import PairLoss, Sides


def ipo(sides: Sides, *, beta: float) -> PairLoss:
    """Return the loss and derivatives for each pair."""
    chosen = sides.chosen - sides.ref_chosen
    rejected = sides.rejected - sides.ref_rejected
    miss = chosen - rejected - 1 / (2 * beta)
    return PairLoss(miss**2, 2 * miss, -2 * miss, beta * chosen, beta * rejected)
