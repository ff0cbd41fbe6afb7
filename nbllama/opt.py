"""AdamW on a flat dict of float32 arrays, and the learning-rate schedule.

Update number `it` (the first is 1), with schedule value s, as in llama.cpp's
`ggml.c:ggml_opt_adam` of July 2024 ("Decoupled Weight Decay Regularization", Loshchilov and
Hutter 2019, whose decay follows the schedule too):

    norm = √Σ g²  over all arrays          c = gclip / norm if norm > gclip > 0, else 1
    m ← β1 m + (1 - β1) c g                v ← β2 v + (1 - β2) (c g)²
    x ← x (1 - decay α s) - (m α s / (1 - β1^it)) / (√(v / (1 - β2^it)) + ε)

Arrays of fewer than `decay_min_ndim` dimensions are not decayed. Everything is elementwise
float32, except the norm, which is summed in float64 in a fixed order: the same bits with any
number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

CHUNK = 32768  # elements; three float32 arrays of this size and two scratch ones fit in L2


class StepInfo(NamedTuple):
    """What one update did: the global gradient norm before clipping, and if it was clipped."""

    grad_norm: float
    clipped: bool


def n_dims(name: str, shape: tuple[int, ...]) -> int:
    """Dimensions of a LoRA array as llama.cpp counts them (`ggml_n_dims`), trailing 1s dropped.

    The old tool holds both halves as ne = [rank, n]. So only the `lora_b` of a norm vector,
    ne = [rank, 1], has one dimension; a rank-1 `lora_a`, ne = [1, n], has two.
    """
    ne = list(shape[::-1] if name.endswith(".lora_b") else shape)
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    return len(ne)


def check_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Name of the first array that holds a NaN or an infinity; None if there is none."""
    for name, x in arrays.items():
        # min and max pass a NaN on, and need no mask as large as the array
        if x.size and not (math.isfinite(x.min()) and math.isfinite(x.max())):
            return name
    return None


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    flat = x.reshape(-1)
    return (flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK))


def global_norm(arrays: Mapping[str, np.ndarray]) -> float:
    """√ of the sum of all squares, in float64, array after array; NaN or inf if any value is."""
    wide = np.empty(CHUNK, np.float64)
    total = 0.0
    for x in arrays.values():
        for part in _chunks(x):
            square = wide[: part.size]
            np.multiply(part, part, out=square, dtype=np.float64)
            total += float(np.add.reduce(square))
    return math.sqrt(total)


class AdamW:
    """Optimiser state of `params` (name -> float32 C-contiguous array, updated in place).

    `m`, `v`: first and second moments, by the same names and shapes; `iteration`: updates done.
    `alpha`: learning rate; `decay` is multiplied by it; `gclip` 0: no clipping.
    """

    def __init__(
        self,
        params: Mapping[str, np.ndarray],
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        decay: float = 0.1,
        decay_min_ndim: int = 2,
        gclip: float = 1.0,
    ) -> None:
        for name, x in params.items():
            if x.dtype != np.float32 or not x.flags.c_contiguous or not x.flags.writeable:
                raise ValueError(f"{name}: parameters are writable C-contiguous float32 arrays")
        self.params = dict(params)
        self.alpha, self.beta1, self.beta2, self.eps = alpha, beta1, beta2, eps
        self.decay, self.decay_min_ndim, self.gclip = decay, decay_min_ndim, gclip
        self.m = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.v = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.iteration = 0
        self._scratch = np.empty((2, CHUNK), np.float32)

    def restore(
        self, m: Mapping[str, np.ndarray], v: Mapping[str, np.ndarray], iteration: int
    ) -> None:
        """Copy stored moments in. Raises `ValueError` if names or shapes are not the params'."""
        for mine, theirs in ((self.m, m), (self.v, v)):
            self._check(theirs)
            for name, x in mine.items():
                np.copyto(x, theirs[name], casting="no")
        self.iteration = iteration

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        if arrays.keys() != self.params.keys():
            odd = sorted(arrays.keys() ^ self.params.keys())
            raise ValueError(f"not the optimiser's parameters: {', '.join(odd[:3])}")
        for name, x in self.params.items():
            if arrays[name].shape != x.shape or arrays[name].dtype != np.float32:
                raise ValueError(f"{name}: {arrays[name].shape}, the parameter is {x.shape}")

    def step(self, grads: Mapping[str, np.ndarray], schedule: float = 1.0) -> StepInfo:
        """One update with learning rate `alpha * schedule`. `grads` are left as they are.

        Raises `FloatingPointError`, naming the array, before anything changes if a gradient is
        NaN or infinite; `ValueError` if names or shapes are not the parameters'.
        """
        self._check(grads)
        norm = global_norm({name: grads[name] for name in self.params})
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of {check_finite(grads)} is not finite")
        clipped = 0 < self.gclip < norm
        self.iteration += 1
        rate = self.alpha * schedule
        f32 = np.float32
        clip = f32(self.gclip / norm if clipped else 1.0)
        b1, one_b1 = f32(self.beta1), f32(1.0 - self.beta1)
        b2, one_b2 = f32(self.beta2), f32(1.0 - self.beta2)
        b1h = f32(rate / (1.0 - self.beta1**self.iteration))
        b2h = f32(1.0 / (1.0 - self.beta2**self.iteration))
        eps = f32(self.eps)
        for name, param in self.params.items():
            decays = n_dims(name, param.shape) >= self.decay_min_ndim
            keep = f32(1.0 - self.decay * rate if decays else 1.0)
            arrays = (param, grads[name], self.m[name], self.v[name])
            for x, g, m, v in zip(*map(_chunks, arrays), strict=True):
                t, u = self._scratch[0, : x.size], self._scratch[1, : x.size]
                np.multiply(g, clip, out=t)
                np.multiply(t, one_b1, out=u)
                m *= b1
                m += u
                np.multiply(t, t, out=t)
                t *= one_b2
                v *= b2
                v += t
                np.multiply(v, b2h, out=t)
                np.sqrt(t, out=t)
                t += eps
                np.multiply(m, b1h, out=u)
                u /= t
                x *= keep
                x -= u
        return StepInfo(norm, clipped)


def _cosine(step: int, decay_steps: int, minimum: float) -> float:
    if decay_steps <= 0:
        return minimum  # the limit of ever shorter decays; the formula itself is 0 / 0
    t = min(step, decay_steps) / decay_steps
    return (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * t)) + minimum


def schedule(
    step: int,
    warmup: int = 100,
    cos_decay_steps: int = 1000,
    cos_decay_min: float = 0.1,
    cos_decay_restart: float = 1.1,
    enable_restart: bool = False,
    min_ratio: float = 0.0,
) -> float:
    """Factor on the learning rate of update `step` (the first is 1).

    Formulas of llama.cpp's `common/train.cpp:learning_schedule`, taken at the update itself
    (the old tool is one behind, so that its first update under warm-up does nothing):

        r = step / warmup                          while step < warmup
          = cosine(step)                           without restarts; from `step`, as the old tool
          = cosine(step - warmup)                  with restarts, each cycle `cos_decay_restart`
                                                   times as long as the one before
        factor = min_ratio + r (1 - min_ratio)

    where cosine falls from 1 to `cos_decay_min` within `cos_decay_steps`. `min_ratio`: smallest
    rate / rate. A decay over 0 steps (asked for, or shrunk to by restarts) is at its minimum.
    """
    if step < warmup:
        r = step / warmup
    elif enable_restart:
        step, length = step - warmup, cos_decay_steps
        while 0 < length < step:
            step -= length
            length = int(cos_decay_restart * length)
        r = _cosine(step, length, cos_decay_min)
    else:
        r = _cosine(step, cos_decay_steps, cos_decay_min)
    return min_ratio + r * (1.0 - min_ratio)
