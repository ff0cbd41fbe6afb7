"""SimPO, simple preference optimisation, which needs no reference.

    r = b log pi(w) / |w| - b log pi(l) / |l|
    loss = -(1 - e) log sigmoid(r - g) - e log sigmoid(g - r)

Here w is the chosen answer, l is the rejected answer, |y| is the number of tokens in an answer, and
b is `beta`. g is `margin`, the amount by which the chosen answer should win, and e is
`label_smoothing` (0 in the paper).

    d loss / dr = e sigmoid(r - g) - (1 - e) sigmoid(g - r)
    d loss / d log pi(w) = (d loss / dr) b / |w|       d loss / d log pi(l) = -(d loss / dr) b / |l|

The reward of an answer is b log pi / |y|.

Source: Meng, Xia and Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward"
(2024), equation 6. Label smoothing works as in `dpo`.
"""

from __future__ import annotations

from nbllama.objectives.sides import PairLoss, Sides, log_sigmoid, sigmoid


def simpo(sides: Sides, *, beta: float, margin: float, label_smoothing: float = 0.0) -> PairLoss:
    """Return the loss and derivatives for each pair."""
    chosen = beta * sides.chosen / sides.n_chosen
    rejected = beta * sides.rejected / sides.n_rejected
    x, e = chosen - rejected - margin, label_smoothing
    loss = -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)
    dr = e * sigmoid(x) - (1 - e) * sigmoid(-x)
    return PairLoss(
        loss, dr * beta / sides.n_chosen, -dr * beta / sides.n_rejected, chosen, rejected
    )
