"""AdamW.

Update number `it` (the first is 1), with g the clipped gradient and the rate of
`nbllama.opt.optimiser`, as in llama.cpp's `ggml.c:ggml_opt_adam` of July 2024 ("Decoupled Weight
Decay Regularization", Loshchilov and Hutter 2019):

    m ← β1 m + (1 - β1) g                  v ← β2 v + (1 - β2) g²
    x ← x (1 - decay rate) - (m rate / (1 - β1^it)) / (√(v / (1 - β2^it)) + ε)
"""

from __future__ import annotations

import numpy as np

from nbllama.opt.optimiser import Optimiser


class AdamW(Optimiser):
    """See the module's text; `m`, `v` are the moments."""

    second = True

    def _update(
        self, g: np.ndarray, step: np.ndarray, moments: list[np.ndarray], rate: float
    ) -> None:
        f32 = np.float32
        m, v = moments
        t, u = g, step
        np.multiply(t, f32(1.0 - self.beta1), out=u)
        m *= f32(self.beta1)
        m += u
        np.multiply(t, t, out=t)
        t *= f32(1.0 - self.beta2)
        v *= f32(self.beta2)
        v += t
        np.multiply(v, f32(1.0 / (1.0 - self.beta2**self.iteration)), out=t)
        np.sqrt(t, out=t)
        t += f32(self.eps)
        np.multiply(m, f32(rate / (1.0 - self.beta1**self.iteration)), out=u)
        u /= t
