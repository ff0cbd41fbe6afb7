"""SGD with momentum β1 (0 for none) and decoupled weight decay.

    m ← β1 m + g
    x ← x (1 - decay rate) - rate m

Source: "Some methods of speeding up the convergence of iteration methods", Polyak 1964. As in
PyTorch, g is added to m without the factor 1 - β1. β2 and ε are not used.
"""

from __future__ import annotations

import numpy as np

from nbllama.opt.optimiser import Optimiser


class SGD(Optimiser):
    """SGD (see the module docstring); `m` is the momentum, and `v` is empty."""

    def _update(
        self, g: np.ndarray, step: np.ndarray, moments: list[np.ndarray], rate: float
    ) -> None:
        (m,) = moments
        m *= np.float32(self.beta1)
        m += g
        np.multiply(m, np.float32(rate), out=step)
