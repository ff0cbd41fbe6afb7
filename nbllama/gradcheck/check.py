"""Check the gradients of the kernels against finite differences of the plain float64 model.

For each half p of a pair, let g be the gradient that training would use and L the loss in float64:

    slope(d) = (L(p + h d) - L(p - h d)) / 2h                          |d| = 1
    error    = max over d of c(d) |slope(d) - g . d| / |g|     c(d) = √n for a random d, else 1

Two directions are tested: the direction of g, which reveals a wrong size or sign, and a random
direction, which involves every element of g. In a random direction, an error in a gradient of n
elements appears √n times smaller, which the factor √n corrects.

The kernels use float32, so their gradients have errors of about 1e-5 |g|. The error of the slope is
about h² |g|. With a wrong formula, the error is a large fraction of |g|.
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

STEP = 1e-4  # h, relative to the half's norm
ZERO = 1e-9  # slopes below this are treated as zero


class Checked(NamedTuple):
    """The result for one half of a pair.

    `error` is defined in the module docstring. It is NaN if the gradient is zero.
    """

    name: str  # of the base tensor
    type: str  # its weight type
    half: str  # "lora_a" or "lora_b"
    length: float  # norm of the gradient
    error: float
    verdict: str  # "ok", "WRONG", or "zero" (gradient and slope are zero, which proves nothing)


def random_adapter(model: Model, rank: int, seed: int) -> Adapter:
    """Return random A and B for every tensor that supports a pair, with a scale other than 1."""
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
    """Compute (L(p + h d) - L(p - h d)) / 2h; only the parameters named in d change."""
    ends = []
    for sign in (1, -1):
        moved = {name: params[name] + sign * h * d for name, d in direction.items()}
        ends.append(reference.loss(batch, {**params, **moved}, scale))
    return (ends[0] - ends[1]) / (2 * h)


class Losses(NamedTuple):
    """The loss, computed by the kernels and by the float64 model."""

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
    """Check each half of each pair, in order, after calling `tell` with the losses."""
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
            unit = g / length
            errors = (
                abs(along(name, unit, h) - length) / length,
                apart * math.sqrt(g.size) / length,
            )
            error = max(errors)
            # NaN is never a correct gradient
            verdict = "ok" if error <= tolerance and math.isfinite(length) else "WRONG"
            yield Checked(base, kind, half, length, error, verdict)
