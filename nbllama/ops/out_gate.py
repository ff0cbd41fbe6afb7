"""The gate on the attention output in Qwen 3.5: multiply each number by the sigmoid of its gate.

    y = x s(z)                          s(z) = 1 / (1 + exp(-z))
    dx = dy s(z)                        dz = dy x s(z) (1 - s(z))

One projection computes the queries and the gates z. Its output qz `[N, H, 2, D]` contains the
queries in part 0, which is not read here, and z in part 1. x and y are `[N, H, D]`, and all arrays
are float32.

llama.cpp: `ggml_sigmoid`, then `ggml_mul`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly

_ONE = np.float32(1.0)


def out_gate_ref(x: np.ndarray, qz: np.ndarray) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of the inputs."""
    return np.asarray(x / (1 + np.exp(-qz[:, :, 1])))


def out_gate_grad_ref(
    dy: np.ndarray, x: np.ndarray, qz: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return dx and dqz; part 0 of dqz is 0."""
    s, dqz = 1 / (1 + np.exp(-qz[:, :, 1])), np.zeros_like(qz)
    dqz[:, :, 1] = dy * x * s * (1 - s)
    return dy * s, dqz


# z - z is 0 for a finite z. If z is NaN or infinite, z - z is NaN, and so is the output.
@kernel()
def out_gate_row(x, z, y):
    """Compute y from the numbers x and their gates z. y may be the same array as x."""
    for i in range(x.shape[0]):
        y[i] = x[i] * (_ONE / (_ONE + exp_f32(-z[i]))) + (z[i] - z[i])


@kernel()
def _serial(x, qz, y):
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            out_gate_row(x[n, h], qz[n, h, 1], y[n, h])


@kernel(parallel=True)
def _parallel(x, qz, y):
    for n in prange(x.shape[0]):
        for h in range(x.shape[1]):
            out_gate_row(x[n, h], qz[n, h, 1], y[n, h])


@kernel()
def _row_grad(dy, x, z, dz):
    for i in range(x.shape[0]):
        s = _ONE / (_ONE + exp_f32(-z[i])) + (z[i] - z[i])
        dz[i] = dy[i] * x[i] * (s * (_ONE - s))
        dy[i] = dy[i] * s


@kernel(parallel=True)
def _grad(dy, x, qz, dqz):
    for n in prange(x.shape[0]):
        for h in range(x.shape[1]):
            _row_grad(dy[n, h], x[n, h], qz[n, h, 1], dqz[n, h, 1])


def out_gate(x: np.ndarray, qz: np.ndarray, y: np.ndarray) -> None:
    """Write y `[N, H, D]`, given x and qz. Raises ValueError for mismatched arrays."""
    _check("out_gate", x, qz)
    check_output("out_gate", "y", y, x.shape)
    run = _serial if x.size <= SERIAL else _parallel
    run(readonly(x), readonly(qz), y)


def out_gate_grad(dy: np.ndarray, x: np.ndarray, qz: np.ndarray, dqz: np.ndarray) -> None:
    """Overwrite dy `[N, H, D]` with dx, and write part 1 of dqz `[N, H, 2, D]`.

    Raises ValueError for mismatched arrays.
    """
    _check("out_gate_grad", x, qz)
    check_output("out_gate_grad", "dy", dy, x.shape)
    check_output("out_gate_grad", "dqz", dqz, qz.shape)
    _grad(dy, readonly(x), readonly(qz), dqz)


def _check(op: str, x: np.ndarray, qz: np.ndarray) -> None:
    if np.ndim(x) != 3:
        raise ValueError(f"{op}: x has shape {np.shape(x)}, expected [N, H, D]")
    check_array(op, "x", x, x.shape)
    check_array(op, "qz", qz, (*x.shape[:2], 2, x.shape[2]))


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, h, d = {"tiny": (2, 1, 3), "one": (1, 4, 32), "odd": (37, 3, 33), "wide": (40, 8, 256)}[size]
    x, qz = rng.standard_normal((n, h, d)), 2 * rng.standard_normal((n, h, 2, d))
    return {"x": x.astype(dtype), "qz": qz.astype(dtype)}


def _forward(x: np.ndarray, qz: np.ndarray) -> np.ndarray:
    y = np.empty(np.shape(x), np.float32)
    out_gate(x, qz, y)
    return y


def _gradients(dy: np.ndarray, x: np.ndarray, qz: np.ndarray) -> Gradients:
    check_array("out_gate_grad", "dy", dy, x.shape)
    dx, dqz = dy.copy(), np.zeros_like(qz)
    out_gate_grad(dx, x, qz, dqz)
    return {"x": dx, "qz": dqz}


def _gradients_ref(dy: np.ndarray, x: np.ndarray, qz: np.ndarray) -> Gradients:
    dx, dqz = out_gate_grad_ref(dy, x, qz)
    return {"x": dx, "qz": dqz}


OPS = (
    Op(
        name="out_gate",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=out_gate_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=1e-6,
        why="exp_f32 is accurate to 2.7e-7; other operations add a few rounding errors",
        ggml="ggml_mul(x, ggml_sigmoid(z))",
    ),
)
