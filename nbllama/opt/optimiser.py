"""The code shared by all optimisers: parameters, moments, clipping, decay and learning rates.

    norm = √Σ g²  over all arrays          c = gclip / norm if norm > gclip > 0, else 1
    x ← x (1 - decay rate) - (the optimiser's own step with c g and rate)

where rate = α · schedule, multiplied by `b_ratio` for the B matrix of each LoRA pair. With the same
learning rate as A, B would learn too slowly in wide models ("LoRA+: Efficient Low Rank Adaptation
of Large Models", Hayou, Ghosh and Yu 2024). Decay is decoupled from the gradient and proportional
to the learning rate ("Decoupled Weight Decay Regularization", Loshchilov and Hutter 2019). Arrays
with fewer than `decay_min_ndim` dimensions are not decayed. All operations are elementwise in
float32, except for the norm, which is summed in float64 in a fixed order. The results are therefore
bit-identical for any number of threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from nbllama.kernels.turns import in_turn
from nbllama.opt import arrays
from nbllama.opt.arrays import check_finite, chunks, global_norm, n_dims


class StepInfo(NamedTuple):
    """The result of an update: the gradient norm before clipping, and whether it was clipped."""

    grad_norm: float
    clipped: bool


class Optimiser(ABC):
    """An optimiser that updates `params`, a dict of C-contiguous float32 arrays, in place.

    `m` and `v` contain the first and second moments, with the same names and shapes as `params`;
    `v` is empty if there are no second moments. `iteration` is the number of completed updates. The
    learning rate `alpha` also multiplies `decay`. `gclip` limits the gradient norm (0 means no
    limit).
    """

    has_second_moment: ClassVar[bool] = False

    def __init__(
        self,
        params: Mapping[str, np.ndarray],
        alpha: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        decay: float = 0.1,
        decay_min_ndim: int = 2,
        gclip: float = 1.0,
        b_ratio: float = 1.0,
    ) -> None:
        for name, x in params.items():
            if x.dtype != np.float32 or not x.flags.c_contiguous or not x.flags.writeable:
                raise ValueError(f"{name}: must be a writable C-contiguous float32 array")
        self.params = dict(params)
        self.alpha, self.beta1, self.beta2, self.eps = alpha, beta1, beta2, eps
        self.decay, self.decay_min_ndim, self.gclip = decay, decay_min_ndim, gclip
        self.b_ratio = b_ratio
        self.m = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.v = {
            name: np.zeros_like(x) for name, x in self.params.items() if self.has_second_moment
        }
        self.iteration = 0
        self._scratch = np.empty((2, arrays.CHUNK), np.float32)

    def restore(
        self, m: Mapping[str, np.ndarray], v: Mapping[str, np.ndarray], iteration: int
    ) -> None:
        """Restore stored moments. Raises `ValueError` if names or shapes do not match."""
        self._check(m)
        if self.has_second_moment:
            self._check(v)
        elif v:
            raise ValueError("the state contains second moments, which this optimiser does not use")
        for mine, theirs in ((self.m, m), (self.v, v)):
            for name, x in mine.items():
                np.copyto(x, theirs[name], casting="no")
        self.iteration = iteration

    def _check(self, values: Mapping[str, np.ndarray]) -> None:
        if values.keys() != self.params.keys():
            odd = sorted(values.keys() ^ self.params.keys())
            raise ValueError(
                f"the names do not match the optimiser's parameters: {', '.join(odd[:3])}"
            )
        for name, x in self.params.items():
            value = values[name]
            if value.shape != x.shape or value.dtype != np.float32:
                raise ValueError(f"{name}: {value.dtype} {value.shape}, not float32 {x.shape}")

    @in_turn
    def step(self, grads: Mapping[str, np.ndarray], schedule: float = 1.0) -> StepInfo:
        """Perform one update with learning rate `alpha * schedule`, without modifying `grads`.

        Raises `FloatingPointError`, with the name of the array, if a gradient contains a NaN or an
        infinity. Raises `ValueError` if names or shapes do not match the parameters. In both cases,
        nothing is changed.
        """
        self._check(grads)
        norm = global_norm({name: grads[name] for name in self.params})
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of {check_finite(grads)} is not finite")
        clipped = 0 < self.gclip < norm
        self.iteration += 1
        rate = self.alpha * schedule
        clip = np.float32(self.gclip / norm if clipped else 1.0)
        for name, param in self.params.items():
            its_rate = rate * self.b_ratio if name.endswith(".lora_b") else rate
            decays = n_dims(name, param.shape) >= self.decay_min_ndim
            keep = np.float32(1.0 - self.decay * its_rate if decays else 1.0)
            pieces = [param, grads[name], self.m[name]]
            if self.has_second_moment:
                pieces.append(self.v[name])
            for x, g, *moments in zip(*map(chunks, pieces), strict=True):
                clipped_g, step = self._scratch[0, : x.size], self._scratch[1, : x.size]
                np.multiply(g, clip, out=clipped_g)
                self._update(clipped_g, step, moments, its_rate)
                x *= keep
                x -= step
        return StepInfo(norm, clipped)

    @abstractmethod
    def _update(
        self, g: np.ndarray, step: np.ndarray, moments: list[np.ndarray], rate: float
    ) -> None:
        """Update the moments of one chunk with its clipped gradient `g`, and write `step`.

        `step` will be subtracted from the parameters. `g` may be overwritten.
        """
