"""Finite differences: a gradient compared with changes of the function.

Everything runs in float64 on the reference functions of the op pages. With a central difference of
step h the error is about h^2 f''' / 6 from the cut series and 1e-16 f / h from rounding; at
h = 1e-5 both are near 1e-10 of the function's size: a difference of `BOUND` means a wrong formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 1e-5
BOUND = 1e-7

Inputs = dict[str, Any]
Gradients = dict[str, np.ndarray]


def _change(f: Callable[[Inputs], float], inputs: Inputs, name: str, by: np.ndarray) -> float:
    """(f(x + by) - f(x - by)) / 2 for the input `name`."""
    up, down = ({**inputs, name: inputs[name] + sign * by} for sign in (1, -1))
    return (f(up) - f(down)) / 2


def check_every_entry(f: Callable[[Inputs], float], inputs: Inputs, gradients: Gradients) -> None:
    """Compare every number of every gradient of the scalar `f` with a difference quotient."""
    for name, gradient in gradients.items():
        numeric = np.zeros_like(inputs[name])
        for at in np.ndindex(numeric.shape):
            by = np.zeros_like(numeric)
            by[at] = STEP
            numeric[at] = _change(f, inputs, name, by) / STEP
        scale = np.abs(numeric).max()
        assert scale > 0, f"{name} has no influence here: the comparison would be empty"
        assert gradient.shape == numeric.shape, name
        worst = np.abs(gradient - numeric).max() / scale
        assert worst < BOUND, f"gradient with respect to {name}: {worst:.2g} off"


def check_directions(
    f: Callable[[Inputs], float],
    inputs: Inputs,
    gradients: Gradients,
    rng: np.random.Generator,
    n_directions: int = 3,
) -> None:
    """Compare slopes along random directions, for each input alone, relative to |gradient|."""
    for name, gradient in gradients.items():
        size = float(np.linalg.norm(gradient))
        if size < BOUND and max(np.linalg.norm(g) for g in gradients.values()) > 1e-3:
            size = 1.0  # no influence at all (a softmax over one key): the slope must be 0 too
        assert size > 0, f"gradient for {name} is zero: the comparison would be empty"
        for _ in range(n_directions):
            direction = rng.standard_normal(gradient.shape)
            numeric = _change(f, inputs, name, STEP * direction) / STEP
            worst = abs(numeric - (gradient * direction).sum()) / size
            assert worst < BOUND, f"gradient for {name}: {worst:.2g} off along a random direction"
