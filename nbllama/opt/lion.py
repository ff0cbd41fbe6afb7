"""Lion, whose steps have the size of the learning rate and the sign of an averaged gradient.

    x ← x (1 - decay rate) - rate sign(β1 m + (1 - β1) g)
    m ← β2 m + (1 - β2) g

Source: "Symbolic Discovery of Optimization Algorithms", Chen et al. 2023 (β1 = 0.9, β2 = 0.99). The
learning rate should be a third to a tenth of AdamW's. ε is not used, and sign(0) is 0.
"""

from __future__ import annotations

import numpy as np

from nbllama.opt.optimiser import Optimiser


class Lion(Optimiser):
    """Lion (see the module docstring); `m` is the average, and `v` is empty."""

    def _update(
        self, g: np.ndarray, step: np.ndarray, moments: list[np.ndarray], rate: float
    ) -> None:
        f32 = np.float32
        (m,) = moments
        np.multiply(m, f32(self.beta1), out=step)
        # m ← β2 m, while g is still the gradient
        m *= f32(self.beta2)
        mean = f32(1.0 - self.beta1) * g
        step += mean
        np.sign(step, out=step)
        step *= f32(rate)
        g *= f32(1.0 - self.beta2)
        m += g
