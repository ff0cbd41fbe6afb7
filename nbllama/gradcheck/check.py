"""Gradients of the kernels against slopes of the plain float64 model.

For each half p of a pair, with g the gradient that training would use and L the loss in float64:

    slope(d) = (L(p + h d) - L(p - h d)) / 2h                          |d| = 1
    error    = max over d of |slope(d) - g . d| / |g|  √(n for a random d)

with two directions: g's own, in which a wrong size or sign shows at once, and a random one, in
which every number of g takes part. A random direction sees an error of the gradient shortened by
the square root of the count n of numbers, which is made up for.

The kernels are float32, with errors around 1e-5 of a gradient's length; the slope's own error is
some h² of it. A wrong formula is off by a large part of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nbllama.data.batch import Batch
from nbllama.gguf_io import TENSOR_TYPES
from nbllama.lora.pairs import Adapter, init_adapter
from nbllama.lora.slots import EVERY_SLOT, without_tensor
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model
from nbllama.model.reference import ReferenceModel, parameters64

Parameters = Mapping[str, np.ndarray]

STEP = 1e-4  # h, as a share of the half's length
ZERO = 1e-9  # a slope below it counts as none


class Checked(NamedTuple):
    """One half of a pair. `error`: see the module's text; NaN where the gradient is zero."""

    name: str  # of the base tensor
    type: str  # its weight type
    half: str  # "lora_a" or "lora_b"
    length: float  # of the gradient
    error: float
    verdict: str  # "ok", "WRONG", "zero": gradient and slope are both zero, nothing is proved


def random_adapter(model: Model, rank: int, seed: int) -> Adapter:
    """Random A and B on everything that takes a pair, with a scale that is not 1."""
    missing = without_tensor(model.shapes)
    ranks = {s.name: 0 if s.name in missing else rank for s in EVERY_SLOT}
    adapter = init_adapter(
        model.hp, ranks, alpha=1.5 * rank, lora_r=rank, seed=seed, shapes=model.shapes
    )
    rng = np.random.default_rng(seed)
    for pair in adapter.pairs.values():
        pair.b[...] = 0.1 * rng.standard_normal(pair.b.shape)
    return adapter


def slope(
    reference: ReferenceModel,
    batch: Batch,
    params: Parameters,
    scale: float,
    *,
    direction: Parameters,
    h: float,
) -> float:
    """(L(p + h d) - L(p - h d)) / 2h, where d moves only the parameters that it names."""
    ends = []
    for sign in (1, -1):
        moved = {name: params[name] + sign * h * d for name, d in direction.items()}
        ends.append(reference.loss(batch, {**params, **moved}, scale))
    return (ends[0] - ends[1]) / (2 * h)


class Losses(NamedTuple):
    """Of the kernels, and of the float64 model."""

    ours: float
    reference: float


def check(
    model: Model,
    adapter: Adapter,
    batch: Batch,
    *,
    tolerance: float,
    seed: int,
    tell: Callable[[Losses], None] | None = None,
) -> Iterator[Checked]:
    """Every half of every pair, one after the other. `tell` gets the losses first."""
    loss, grads = loss_and_gradients(model, adapter, batch, checkpointing=True)
    reference, params = ReferenceModel(model), parameters64(adapter)
    scale, rng = adapter.scale, np.random.default_rng(seed)
    if tell is not None:
        tell(Losses(loss, reference.loss(batch, params, scale)))

    def along(name: str, direction: np.ndarray, h: float) -> float:
        return slope(reference, batch, params, scale, direction={name: direction}, h=h)

    for base in adapter.pairs:
        kind = TENSOR_TYPES[model.gguf.tensors[base].type_id].name
        for half in ("lora_a", "lora_b"):
            name = f"{base}.{half}"
            g = grads[name].astype(np.float64)
            length, size = float(np.linalg.norm(g)), float(np.linalg.norm(params[name]))
            h = STEP * (size or 1.0)
            random = rng.standard_normal(g.shape)
            random /= np.linalg.norm(random)
            apart = abs(along(name, random, h) - float((g * random).sum()))
            if not length:
                verdict = "zero" if apart < ZERO else "WRONG"
                yield Checked(base, kind, half, 0.0, math.nan, verdict)
                continue
            own = g / length
            errors = (
                abs(along(name, own, h) - length) / length,
                apart * math.sqrt(g.size) / length,
            )
            error = max(errors)
            # a NaN is no right gradient
            verdict = "ok" if error <= tolerance and math.isfinite(length) else "WRONG"
            yield Checked(base, kind, half, length, error, verdict)
