"""DPO, direct preference optimisation.

    h = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l))
    loss = -(1 - e) log sigmoid(b h) - e log sigmoid(-b h)

Here w is the chosen answer, l is the rejected answer, and b is `beta`. e is `label_smoothing`, the
assumed fraction of pairs in which the two answers are swapped (0 in the paper; e > 0 gives
Mitchell's conservative DPO). Since d log sigmoid(x) / dx = sigmoid(-x),

    d loss / dh = b (e sigmoid(b h) - (1 - e) sigmoid(-b h))

which equals both d loss / d log pi(w) and -d loss / d log pi(l). The reward of an answer is
b (log pi - log ref).

Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model" (2023), equations 7 and 5. Label smoothing is from Mitchell, "A note on DPO with noisy
preferences and relationship to IPO" (2023).
"""

from __future__ import annotations

from nbllama.objectives.sides import PairLoss, Sides, log_sigmoid, sigmoid


def dpo(sides: Sides, *, beta: float, label_smoothing: float = 0.0) -> PairLoss:
    """Return the loss and derivatives for each pair."""
    chosen = beta * (sides.chosen - sides.ref_chosen)
    rejected = beta * (sides.rejected - sides.ref_rejected)
    x, e = chosen - rejected, label_smoothing
    loss = -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)
    dh = beta * (e * sigmoid(x) - (1 - e) * sigmoid(-x))
    return PairLoss(loss, dh, -dh, chosen, rejected)
