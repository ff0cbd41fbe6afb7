"""RMSNorm: divide each token's vector by its root mean square, and scale it by a learned vector.

    rstd[n] = 1 / sqrt(mean_c x[n, c]^2 + eps)        y[n, c] = w[c] * x[n, c] * rstd[n]

Gradient, with xh = x * rstd and g = w * dy, derived from d rstd / d x[c] = -rstd^2 xh[c] / C:

    dx[n, c] = rstd[n] * (g[n, c] - xh[n, c] * mean_c(g[n, c] * xh[n, c]))
    dw[c]    = sum_n dy[n, c] * xh[n, c]

The kernel moves factors that do not depend on c out of the loop and computes dx in the equivalent
form

    along[n] = rstd[n]^2 * mean_c(dy[n, c] * w[c] * x[n, c])
    dx[n, c] = rstd[n] * (dy[n, c] * w[c] - x[n, c] * along[n])

All arrays are float32: x, y, dy and dx are `[N, C]`, w and dw are `[C]`, and rstd is `[N]`. N can
be any number of rows. To normalise each head, apply the op to `[N * H, D]`. The gradient needs x
and rstd. The sum of squares is computed in float64, as in llama.cpp. A NaN in x makes the whole row
of y NaN.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). llama.cpp:
`ggml_rms_norm`, `ggml_mul`, `ggml_rms_norm_back`. finetune.cpp calls the tensors t02 to t04, t22 to
t24 and t31 to t33.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly

COLUMNS = 64  # columns of dw per task
TOKENS = 64  # tokens per partial sum; the partial sums are then added to dw


def rms_norm_ref(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of x."""
    return w * x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)


def rms_norm_grad_ref(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients (dx, dw) of `rms_norm_ref`."""
    rstd = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + eps)
    xh, g = x * rstd, w * dy
    return rstd * (g - xh * np.mean(g * xh, axis=1, keepdims=True)), (dy * xh).sum(axis=0)


@kernel(fast=True)
def _sum_of_squares(x):
    total = 0.0  # float64
    for c in range(x.shape[0]):
        total += np.float64(x[c]) * np.float64(x[c])
    return total


@kernel(fast=True)
def _sum_of_products(dy, w, x):
    total = np.float32(0.0)
    for c in range(x.shape[0]):
        total += dy[c] * w[c] * x[c]
    return total


# Only the sums are compiled with fast math, because its `arcp` flag would replace the reciprocal
# square root with the CPU's estimate.
@kernel()
def norm_row(x, w, eps, y):
    """Compute one row of y; return its rstd."""
    mean = np.float32(_sum_of_squares(x) / x.shape[0])
    rstd = np.float32(1.0) / np.sqrt(mean + eps)
    for c in range(x.shape[0]):
        y[c] = x[c] * rstd * w[c]
    return rstd


@kernel()
def _row_grad(dy, x, w, rstd, dx, add):
    along = _sum_of_products(dy, w, x) * rstd * rstd / np.float32(x.shape[0])
    if add:
        for c in range(x.shape[0]):
            dx[c] += rstd * (dy[c] * w[c] - x[c] * along)
    else:
        for c in range(x.shape[0]):
            dx[c] = rstd * (dy[c] * w[c] - x[c] * along)


@kernel()
def _serial(x, w, eps, y, rstd):
    for n in range(x.shape[0]):
        rstd[n] = norm_row(x[n], w, eps, y[n])


@kernel(parallel=True)
def _parallel(x, w, eps, y, rstd):
    for n in prange(x.shape[0]):
        rstd[n] = norm_row(x[n], w, eps, y[n])


@kernel(parallel=True)
def _grad(dy, x, w, rstd, dx, add):
    for n in prange(x.shape[0]):
        _row_grad(dy[n], x[n], w, rstd[n], dx[n], add)


@kernel()
def _add_products(dy, x, rstd, sums):
    for c in range(sums.shape[0]):
        sums[c] += dy[c] * x[c] * rstd


@kernel(parallel=True)
def _grad_weight(dy, x, rstd, dw, sums):
    width = x.shape[1]
    for task in prange((width + COLUMNS - 1) // COLUMNS):
        first = task * COLUMNS
        last = min(first + COLUMNS, width)
        mine = sums[first:last]
        for n0 in range(0, x.shape[0], TOKENS):
            mine[:] = np.float32(0.0)
            for n in range(n0, min(n0 + TOKENS, x.shape[0])):
                _add_products(dy[n, first:last], x[n, first:last], rstd[n], mine)
            for c in range(first, last):
                dw[c] += sums[c]


def rms_norm(x: np.ndarray, w: np.ndarray, eps: float, *, y: np.ndarray, rstd: np.ndarray) -> None:
    """Write y `[N, C]` and rstd `[N]` for x `[N, C]` and w `[C]`.

    Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    check_array("rms_norm", "x", x, shape)
    check_array("rms_norm", "w", w, shape[1:])
    check_output("rms_norm", "y", y, shape)
    check_output("rms_norm", "rstd", rstd, shape[:1])
    run = _serial if x.size <= SERIAL else _parallel
    run(readonly(x), readonly(w), np.float32(eps), y, rstd)


def rms_norm_grad(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    rstd: np.ndarray,
    *,
    dx: np.ndarray,
    add: bool = False,
) -> None:
    """Write the gradient with respect to x to dx `[N, C]`; with `add`, add it to dx instead.

    rstd `[N]` is the result of `rms_norm`. Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    check_array("rms_norm_grad", "dy", dy, shape)
    check_array("rms_norm_grad", "x", x, shape)
    check_array("rms_norm_grad", "w", w, shape[1:])
    check_array("rms_norm_grad", "rstd", rstd, shape[:1])
    check_output("rms_norm_grad", "dx", dx, shape)
    _grad(readonly(dy), readonly(x), readonly(w), readonly(rstd), dx, add)


def rms_norm_grad_weight(dy: np.ndarray, x: np.ndarray, rstd: np.ndarray, dw: np.ndarray) -> None:
    """Add the gradient with respect to w to dw `[C]`, summed over tokens in ascending order.

    Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    check_array("rms_norm_grad_weight", "dy", dy, shape)
    check_array("rms_norm_grad_weight", "x", x, shape)
    check_array("rms_norm_grad_weight", "rstd", rstd, shape[:1])
    check_output("rms_norm_grad_weight", "dw", dw, shape[1:])
    _grad_weight(readonly(dy), readonly(x), readonly(rstd), dw, np.empty_like(dw))


def _shape(x: np.ndarray) -> tuple[int, int]:
    if np.ndim(x) != 2 or x.shape[1] == 0:
        raise ValueError(f"rms_norm: x has shape {np.shape(x)}, expected [N, C]")
    return x.shape


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, c = {"tiny": (2, 3), "one": (1, 64), "odd": (37, 101), "wide": (33, 576)}[size]
    x = rng.standard_normal((n, c)).astype(dtype)
    return {"x": x, "w": rng.uniform(0.5, 1.5, c).astype(dtype), "eps": 1e-5}


def _forward(x: np.ndarray, w: np.ndarray, eps: float) -> np.ndarray:
    y = np.empty_like(x)
    rms_norm(x, w, eps, y=y, rstd=np.empty(len(x), np.float32))
    return y


def _gradients(dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float) -> Gradients:
    rstd = np.empty(len(x), np.float32)
    rms_norm(x, w, eps, y=np.empty_like(x), rstd=rstd)
    dx, dw = np.empty_like(x), np.zeros_like(w)
    rms_norm_grad(dy, x, w, rstd, dx=dx)
    rms_norm_grad_weight(dy, x, rstd, dw)
    return {"x": dx, "w": dw}


def _gradients_ref(dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float) -> Gradients:
    dx, dw = rms_norm_grad_ref(dy, x, w, eps)
    return {"x": dx, "w": dw}


OPS = (
    Op(
        name="rms_norm",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=rms_norm_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=1e-6,
        why="float32 sums of up to 576 products",
        ggml="ggml_rms_norm(x, eps), then ggml_mul by w; ggml_rms_norm_back(dy, x, eps) with w = 1",
    ),
)
