"""Soft-cap the logits: limit them smoothly to (-cap, cap) with a tanh.

    y = cap * tanh(z / cap)            dz = dy * (1 - (y / cap)^2)

All arrays are float32 `[M, V]`. Both passes work in place, and the gradient needs y. For attention
scores, `nbllama.ops.attention` implements the same function.

Source: Bello et al., "Neural Combinatorial Optimization with Reinforcement Learning" (2016),
section A.1; Gemma Team, "Gemma 2" (2024), section 2. llama.cpp: `ggml_scale`, `ggml_tanh`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import (
    Gradients,
    Inputs,
    Op,
    check_array,
    check_output,
    copy_as_laid_out,
    readonly,
)


def soft_cap_ref(z: np.ndarray, cap: float) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of z."""
    return cap * np.tanh(z / cap)


def soft_cap_grad_ref(dy: np.ndarray, z: np.ndarray, cap: float) -> np.ndarray:
    """Compute the gradient with respect to z."""
    return dy * (1 - np.tanh(z / cap) ** 2)


@kernel()
def _cap_row(row, cap):
    for v in range(row.shape[0]):
        e = exp_f32(np.float32(2.0) * row[v] / cap)
        row[v] = cap * (np.float32(1.0) - np.float32(2.0) / (e + np.float32(1.0)))


@kernel()
def _cap_row_grad(row, y, cap):
    for v in range(row.shape[0]):
        t = y[v] / cap
        row[v] *= np.float32(1.0) - t * t


@kernel(parallel=True)
def _cap(z, cap):
    for m in prange(z.shape[0]):
        _cap_row(z[m], cap)


@kernel(parallel=True)
def _cap_grad(dy, y, cap):
    for m in prange(dy.shape[0]):
        _cap_row_grad(dy[m], y[m], cap)


def soft_cap(z: np.ndarray, cap: float) -> None:
    """Overwrite z `[M, V]` with y.

    Raises ValueError for an invalid array or a cap that is not positive.
    """
    if np.ndim(z) != 2 or not cap > 0:
        raise ValueError(
            f"soft_cap: z has shape {np.shape(z)}, expected [M, V], and cap is {cap}, expected a "
            f"number above 0"
        )
    check_output("soft_cap", "z", z, z.shape)
    _cap(z, np.float32(cap))


def soft_cap_grad(dy: np.ndarray, y: np.ndarray, cap: float) -> None:
    """Overwrite dy `[M, V]` with the gradient with respect to z; y is the output of `soft_cap`.

    Raises ValueError for mismatched arrays or a cap that is not positive.
    """
    if np.ndim(y) != 2 or not cap > 0:
        raise ValueError(
            f"soft_cap: y has shape {np.shape(y)}, expected [M, V], and cap is {cap}, expected a "
            f"number above 0"
        )
    check_array("soft_cap_grad", "y", y, y.shape)
    check_output("soft_cap_grad", "dy", dy, y.shape)
    _cap_grad(dy, readonly(y), np.float32(cap))


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    shape = {"tiny": (2, 3), "one": (1, 64), "odd": (37, 101), "wide": (5, 4099)}[size]
    return {"z": (20 * rng.standard_normal(shape)).astype(dtype), "cap": 30.0}


def _forward(z: np.ndarray, cap: float) -> np.ndarray:
    y = copy_as_laid_out(z)
    soft_cap(y, cap)
    return y


def _gradients(dy: np.ndarray, z: np.ndarray, cap: float) -> Gradients:
    dz = copy_as_laid_out(dy)
    soft_cap_grad(dz, _forward(z, cap), cap)
    return {"z": dz}


OPS = (
    Op(
        name="soft_cap",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=soft_cap_ref,
        grad_ref=lambda dy, z, cap: {"z": soft_cap_grad_ref(dy, z, cap)},
        forward=_forward,
        grad=_gradients,
        tolerance=2e-6,
        why="exp_f32 is accurate to 2.7e-7; near the cap, 1 - (y / cap)^2 loses precision",
        ggml="ggml_scale, ggml_tanh, ggml_scale; ggml has no gradient for ggml_tanh",
    ),
)
