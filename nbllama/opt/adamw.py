"""AdamW.

Update number `it`, counted from 1, uses the clipped gradient g and the learning rate `rate` from
`nbllama.opt.optimiser`. The update is the same as in llama.cpp's `ggml.c:ggml_opt_adam` of July
2024 ("Decoupled Weight Decay Regularization", Loshchilov and Hutter 2019):

    m ← β1 m + (1 - β1) g                  v ← β2 v + (1 - β2) g²
    x ← x (1 - decay rate) - (m rate / (1 - β1^it)) / (√(v / (1 - β2^it)) + ε)
"""

from __future__ import annotations

import numpy as np

from nbllama.opt.optimiser import Optimiser


class AdamW(Optimiser):
    """AdamW (see the module docstring); `m` and `v` are the moments."""

    has_second_moment = True

    def _update(
        self, g: np.ndarray, step: np.ndarray, moments: list[np.ndarray], rate: float
    ) -> None:
        f32, (m, v) = np.float32, moments
        # m ← β1 m + (1 - β1) g
        np.multiply(g, f32(1.0 - self.beta1), out=step)
        m *= f32(self.beta1)
        m += step
        # v ← β2 v + (1 - β2) g²; from here on, g is scratch memory
        np.multiply(g, g, out=g)
        g *= f32(1.0 - self.beta2)
        v *= f32(self.beta2)
        v += g
        # root = √(v / (1 - β2^it)) + ε
        root = np.multiply(v, f32(1.0 / (1.0 - self.beta2**self.iteration)), out=g)
        np.sqrt(root, out=root)
        root += f32(self.eps)
        # step = m rate / (1 - β1^it) / root
        np.multiply(m, f32(rate / (1.0 - self.beta1**self.iteration)), out=step)
        step /= root
