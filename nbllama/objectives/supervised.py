"""The likelihood of the chosen answer as an additional term of a preference loss.

    loss = -a log pi(w) / |w|           d loss / d log pi(w) = -a / |w|

Here w is the chosen answer, |w| is its number of tokens, and a is `weight` (`--sft-weight`). The
term keeps the probability of the chosen answers from falling along with the probability of the
rejected answers.

Source: with a = 1, this is the first term of ORPO (Hong, Lee and Thorne 2024, equation 6). The
combination with DPO is from Pang et al., "Iterative Reasoning Preference Optimization" (2024),
equation 1.
"""

from __future__ import annotations

import numpy as np


def supervised(
    chosen: np.ndarray, n_chosen: np.ndarray, *, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the term and its derivative with respect to the chosen answers' log pi, `[n]`."""
    return -weight * chosen / n_chosen, -weight / n_chosen
