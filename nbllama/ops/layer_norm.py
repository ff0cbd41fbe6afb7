"""LayerNorm: normalise each token's vector to mean 0 and variance 1, then scale and shift it.

    mean[n] = mean_c x[n, c]            rstd[n] = 1 / sqrt(mean_c (x[n, c] - mean[n])^2 + eps)
    xh[n, c] = (x[n, c] - mean[n]) rstd[n]              y[n, c] = w[c] xh[n, c] + b[c]

Gradient: every x[n, c] affects the mean and the variance of its row, so with g = w * dy,

    dx[n, c] = rstd[n] * (g[n, c] - mean_c g[n, c] - xh[n, c] * mean_c(g[n, c] * xh[n, c]))
    dw[c]    = sum_n dy[n, c] * xh[n, c]

All arrays are float32: x, y, dy and dx are `[N, C]`, w, b and dw are `[C]`, and mean and rstd are
`[N]`. A missing w is treated as 1, and a missing b as 0. b is never trained, so it has no gradient.
The gradient needs x, mean and rstd. The sums for the mean and the variance are computed in float64,
as in llama.cpp.

Source: Ba, Kiros and Hinton, "Layer Normalization" (2016). llama.cpp: `ggml_norm`, `ggml_mul`,
`ggml_add`; ggml does not implement the gradient of LayerNorm. finetune.cpp has no LayerNorm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly

COLUMNS = 64  # columns of dw per task
TOKENS = 64  # tokens per partial sum; the partial sums are then added to dw

_NOTHING = np.empty(0, np.float32)  # used if the model has no weight or no bias
_NOTHING.flags.writeable = False


def layer_norm_ref(
    x: np.ndarray, w: np.ndarray | None, b: np.ndarray | None, eps: float
) -> np.ndarray:
    """Compute y in plain numpy, in the dtype of x."""
    y = _normed_ref(x, eps)[0]
    y = y if w is None else y * w
    return y if b is None else y + b


def _normed_ref(x: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return xh `[N, C]` and rstd `[N, 1]`."""
    centred = x - x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(centred * centred, axis=1, keepdims=True) + eps)
    return centred * rstd, rstd


def layer_norm_grad_ref(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients (dx, dw) of `layer_norm_ref`."""
    xh, rstd = _normed_ref(x, eps)
    g = dy if w is None else w * dy
    along = np.mean(g * xh, axis=1, keepdims=True)
    return rstd * (g - g.mean(axis=1, keepdims=True) - xh * along), (dy * xh).sum(axis=0)


@kernel(fast=True)
def _sum(x):
    total = 0.0  # float64
    for c in range(x.shape[0]):
        total += np.float64(x[c])
    return total


@kernel(fast=True)
def _sum_of_squares(x, mean):
    total = 0.0  # float64
    for c in range(x.shape[0]):
        d = x[c] - mean
        total += np.float64(d) * np.float64(d)
    return total


@kernel(fast=True)
def _weighted_sums(dy, w, x, mean):
    """Compute the sums of g and of g (x - mean)."""
    total = along = np.float32(0.0)
    for c in range(x.shape[0]):
        g = dy[c] * w[c]
        total += g
        along += g * (x[c] - mean)
    return total, along


@kernel(fast=True)
def _plain_sums(dy, x, mean):
    total = along = np.float32(0.0)
    for c in range(x.shape[0]):
        total += dy[c]
        along += dy[c] * (x[c] - mean)
    return total, along


# Only the sums are compiled with fast math, because its `arcp` flag would replace the reciprocal
# square root with the CPU's estimate.
@kernel()
def layer_norm_row(x, w, b, eps, y):
    """Compute one row of y; return its mean and rstd. If w or b is empty, it is not applied."""
    mean = np.float32(_sum(x) / x.shape[0])
    variance = np.float32(_sum_of_squares(x, mean) / x.shape[0])
    rstd = np.float32(1.0) / np.sqrt(variance + eps)
    for c in range(x.shape[0]):
        y[c] = (x[c] - mean) * rstd
    if w.shape[0] > 0:
        for c in range(x.shape[0]):
            y[c] *= w[c]
    if b.shape[0] > 0:
        for c in range(x.shape[0]):
            y[c] += b[c]
    return mean, rstd


@kernel()
def _row_grad(dy, x, w, mean, rstd, dx, add):
    n = np.float32(x.shape[0])
    if w.shape[0] > 0:
        total, along = _weighted_sums(dy, w, x, mean)
    else:
        total, along = _plain_sums(dy, x, mean)
    total, along = total / n, along * rstd * rstd / n
    for c in range(x.shape[0]):
        g = dy[c] * w[c] if w.shape[0] > 0 else dy[c]
        d = rstd * (g - total - (x[c] - mean) * along)
        dx[c] = dx[c] + d if add else d


@kernel()
def _serial(x, w, b, eps, y, mean, rstd):
    for n in range(x.shape[0]):
        mean[n], rstd[n] = layer_norm_row(x[n], w, b, eps, y[n])


@kernel(parallel=True)
def _parallel(x, w, b, eps, y, mean, rstd):
    for n in prange(x.shape[0]):
        mean[n], rstd[n] = layer_norm_row(x[n], w, b, eps, y[n])


@kernel(parallel=True)
def _grad(dy, x, w, mean, rstd, dx, add):
    for n in prange(x.shape[0]):
        _row_grad(dy[n], x[n], w, mean[n], rstd[n], dx[n], add)


@kernel()
def _add_products(dy, x, mean, rstd, sums):
    for c in range(sums.shape[0]):
        sums[c] += dy[c] * (x[c] - mean) * rstd


@kernel(parallel=True)
def _grad_weight(dy, x, mean, rstd, dw, sums):
    width = x.shape[1]
    for task in prange((width + COLUMNS - 1) // COLUMNS):
        first = task * COLUMNS
        last = min(first + COLUMNS, width)
        mine = sums[first:last]
        for n0 in range(0, x.shape[0], TOKENS):
            mine[:] = np.float32(0.0)
            for n in range(n0, min(n0 + TOKENS, x.shape[0])):
                _add_products(dy[n, first:last], x[n, first:last], mean[n], rstd[n], mine)
            for c in range(first, last):
                dw[c] += sums[c]


def layer_norm(
    x: np.ndarray,
    w: np.ndarray | None,
    b: np.ndarray | None,
    eps: float,
    *,
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> None:
    """Write y `[N, C]`, mean `[N]` and rstd `[N]` for x `[N, C]`; w and b are `[C]` or None.

    Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    w, b = _vector("layer_norm", "w", w, shape), _vector("layer_norm", "b", b, shape)
    check_array("layer_norm", "x", x, shape)
    check_output("layer_norm", "y", y, shape)
    check_output("layer_norm", "mean", mean, shape[:1])
    check_output("layer_norm", "rstd", rstd, shape[:1])
    run = _serial if x.size <= SERIAL else _parallel
    run(readonly(x), w, b, np.float32(eps), y, mean, rstd)


def layer_norm_grad(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray | None,
    *,
    mean: np.ndarray,
    rstd: np.ndarray,
    dx: np.ndarray,
    add: bool = False,
) -> None:
    """Write the gradient with respect to x to dx `[N, C]`; with `add`, add it to dx instead.

    mean and rstd `[N]` are the results of `layer_norm`. Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    w = _vector("layer_norm_grad", "w", w, shape)
    check_array("layer_norm_grad", "dy", dy, shape)
    check_array("layer_norm_grad", "x", x, shape)
    check_array("layer_norm_grad", "mean", mean, shape[:1])
    check_array("layer_norm_grad", "rstd", rstd, shape[:1])
    check_output("layer_norm_grad", "dx", dx, shape)
    _grad(readonly(dy), readonly(x), w, readonly(mean), readonly(rstd), dx, add)


def layer_norm_grad_weight(
    dy: np.ndarray, x: np.ndarray, *, mean: np.ndarray, rstd: np.ndarray, dw: np.ndarray
) -> None:
    """Add the gradient with respect to w to dw `[C]`, summed over tokens in ascending order.

    Raises ValueError for mismatched arrays.
    """
    shape = _shape(x)
    check_array("layer_norm_grad_weight", "dy", dy, shape)
    check_array("layer_norm_grad_weight", "x", x, shape)
    check_array("layer_norm_grad_weight", "mean", mean, shape[:1])
    check_array("layer_norm_grad_weight", "rstd", rstd, shape[:1])
    check_output("layer_norm_grad_weight", "dw", dw, shape[1:])
    inputs = readonly(dy), readonly(x), readonly(mean), readonly(rstd)
    _grad_weight(*inputs, dw, np.empty_like(dw))


def _shape(x: np.ndarray) -> tuple[int, int]:
    if np.ndim(x) != 2 or x.shape[1] == 0:
        raise ValueError(f"layer_norm: x has shape {np.shape(x)}, expected [N, C]")
    return x.shape


def _vector(op: str, name: str, vector: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    if vector is None:
        return _NOTHING
    check_array(op, name, vector, shape[1:])
    return readonly(vector)


def _sample(rng: np.random.Generator, size: str, dtype: Any, has_w: bool, has_b: bool) -> Inputs:
    n, c = {"tiny": (2, 3), "one": (1, 64), "odd": (37, 101), "wide": (33, 576)}[size]
    x = (rng.standard_normal((n, c)) + 0.5).astype(dtype)
    w = rng.uniform(0.5, 1.5, c).astype(dtype) if has_w else None
    b = rng.standard_normal(c).astype(dtype) if has_b else None
    return {"x": x, "w": w, "b": b, "eps": 1e-5}


def _forward(**inputs: Any) -> np.ndarray:
    y = np.empty_like(inputs["x"])
    mean, rstd = np.empty((2, len(y)), np.float32)
    layer_norm(**inputs, y=y, mean=mean, rstd=rstd)
    return y


def _gradients(dy: np.ndarray, **inputs: Any) -> Gradients:
    x, w = inputs["x"], inputs["w"]
    mean, rstd = np.empty((2, len(x)), np.float32)
    layer_norm(**inputs, y=np.empty_like(x), mean=mean, rstd=rstd)
    dx, dw = np.empty_like(x), np.zeros(x.shape[1], np.float32)
    layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=dx)
    layer_norm_grad_weight(dy, x, mean=mean, rstd=rstd, dw=dw)
    return {"x": dx} if w is None else {"x": dx, "w": dw}


def _gradients_ref(dy: np.ndarray, **inputs: Any) -> Gradients:
    dx, dw = layer_norm_grad_ref(dy, inputs["x"], inputs["w"], inputs["eps"])
    return {"x": dx} if inputs["w"] is None else {"x": dx, "w": dw}


def _op(name: str, has_w: bool, has_b: bool, ggml: str) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, has_w, has_b),
        forward_ref=layer_norm_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=1.5e-6,
        why="float32 sums of up to 576 products, and a rounded mean",
        ggml=ggml,
    )


OPS = (
    _op("layer_norm", True, True, "ggml_norm(x, eps), ggml_mul by w, ggml_add of b; no gradient"),
    _op("layer_norm, no bias", True, False, "ggml_norm(x, eps), ggml_mul by w; no gradient"),
    _op("layer_norm, bare", False, False, "ggml_norm(x, eps); no gradient"),
)
