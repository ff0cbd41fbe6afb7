"""The elementwise activation of a feed-forward layer that has only two matrices (no gate).

    out = act(x)

    gelu, tanh form     a s(z(a))       z = 2 sqrt(2/pi) (a + 0.044715 a^3)   s(z) = 1/(1 + exp(-z))
    relu2               max(a, 0)^2
    xielu               p a^2 + beta a                          for a > 0
                        n (exp(min(a, eps)) - 1 - a) + beta a   else

Gradient: dx = dout * act'(a), with

    gelu                s + a s (1 - s) dz/da
    relu2               2 max(a, 0)
    xielu               2 p a + beta                            for a > 0
                        n (exp(a) - 1) + beta                   for a <= eps
                        beta - n                                for eps < a <= 0

where a is an element of x. In Apertus, eps is -1e-6, and each layer has learned values alpha_p and
alpha_n, from which `xielu_numbers` computes p = softplus(alpha_p) and n = beta + softplus(alpha_n).

All arrays are float32 `[N, F]`. The gradient needs x and overwrites it with dx, because x is the
widest array in a layer.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016); So et al., "Primer" (2021);
Huang and Schlag, "Deriving Activation Functions Using Integration" (2024). llama.cpp: `ggml_gelu`,
whose results differ by up to 1e-3 because it reads a float16 table; `ggml_relu` and `ggml_sqr`;
`ggml_xielu`. finetune.cpp has no equivalent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import SERIAL, Inputs, Op, check_array, check_output, readonly

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
_LINEAR32 = np.float32(_LINEAR)
_CUBIC32 = np.float32(_CUBIC)
_CUBIC32_3 = np.float32(3 * _CUBIC)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)

GELU, RELU2, XIELU = range(3)
CODES = {"gelu": GELU, "relu2": RELU2, "xielu": XIELU}
"""The integer that identifies each activation in the kernels."""


class Xielu(NamedTuple):
    """The xIELU constants of one layer, named as in the formula; other activations ignore them."""

    p: float = 0.0
    n: float = 0.0
    beta: float = 0.0
    eps: float = 0.0


NO_NUMBERS = Xielu()


def xielu_numbers(alpha_p: float, alpha_n: float, beta: float, eps: float) -> Xielu:
    """Compute a layer's constants from the stored numbers, with the same rounding as llama.cpp."""
    f32 = np.float32
    p, n = (f32(a) if a > 20 else np.log(f32(1) + np.exp(f32(a))) for a in (alpha_p, alpha_n))
    return Xielu(float(f32(p)), float(f32(beta) + f32(n)), float(f32(beta)), float(f32(eps)))


def ungated_ref(x: np.ndarray, kind: str, numbers: Xielu = NO_NUMBERS) -> np.ndarray:
    """Compute act(x) in plain numpy, in the dtype of x."""
    if kind == "relu2":
        return np.maximum(x, 0) ** 2
    if kind == "gelu":
        return x * (1 + np.tanh((_LINEAR * x + _CUBIC * x**3) / 2)) / 2
    p, n, beta, eps = numbers
    below = n * (np.expm1(np.minimum(x, eps)) - x) + beta * x
    return np.where(x > 0, p * x * x + beta * x, below)


def ungated_grad_ref(
    dout: np.ndarray, x: np.ndarray, kind: str, numbers: Xielu = NO_NUMBERS
) -> np.ndarray:
    """Return dx, the gradient of `ungated_ref`."""
    if kind == "relu2":
        return dout * 2 * np.maximum(x, 0)
    if kind == "gelu":
        s = (1 + np.tanh((_LINEAR * x + _CUBIC * x**3) / 2)) / 2
        return dout * (s + x * s * (1 - s) * (_LINEAR + 3 * _CUBIC * x**2))
    p, n, beta, eps = numbers
    below = n * (np.where(x > eps, 0, np.exp(np.minimum(x, eps))) - 1) + beta
    return dout * np.where(x > 0, 2 * p * x + beta, below)


@kernel()
def _gelu_row(x, out):
    for f in range(x.shape[0]):
        a = x[f]
        out[f] = a / (_ONE + exp_f32(-a * (_LINEAR32 + _CUBIC32 * a * a)))


@kernel()
def _relu2_row(x, out):
    for f in range(x.shape[0]):
        a = _ZERO if x[f] < _ZERO else x[f]  # NaN stays NaN
        out[f] = a * a


@kernel()
def _xielu_row(x, p, n, beta, eps, out):
    for f in range(x.shape[0]):
        a = x[f]
        low = a if a < eps else eps
        above = p * a * a + beta * a
        below = (exp_f32(low) - _ONE - a) * n + beta * a
        out[f] = above if a > _ZERO else below


@kernel()
def ungated_row(x, code, p, n, beta, eps, out):
    """Compute out = act(x) for one row; `code` identifies the activation."""
    if code == GELU:
        _gelu_row(x, out)
    elif code == RELU2:
        _relu2_row(x, out)
    else:
        _xielu_row(x, p, n, beta, eps, out)


@kernel()
def _gelu_row_grad(dout, x):
    for f in range(x.shape[0]):
        a = x[f]
        s = _ONE / (_ONE + exp_f32(-a * (_LINEAR32 + _CUBIC32 * a * a)))
        slope = _LINEAR32 + _CUBIC32_3 * a * a
        x[f] = dout[f] * (s + a * s * (_ONE - s) * slope)


@kernel()
def _relu2_row_grad(dout, x):
    for f in range(x.shape[0]):
        a = _ZERO if x[f] < _ZERO else x[f]
        x[f] = dout[f] * _TWO * a


@kernel()
def _xielu_row_grad(dout, x, p, n, beta, eps):
    for f in range(x.shape[0]):
        a = x[f]
        e = _ZERO if a > eps else exp_f32(a)
        above = _TWO * p * a + beta
        below = (e - _ONE) * n + beta
        x[f] = dout[f] * (above if a > _ZERO else below)


@kernel()
def _serial(x, code, p, n, beta, eps, out):
    for i in range(x.shape[0]):
        ungated_row(x[i], code, p, n, beta, eps, out[i])


@kernel(parallel=True)
def _parallel(x, code, p, n, beta, eps, out):
    for i in prange(x.shape[0]):
        ungated_row(x[i], code, p, n, beta, eps, out[i])


@kernel(parallel=True)
def _grad(dout, x, code, p, n, beta, eps):
    for i in prange(x.shape[0]):
        if code == GELU:
            _gelu_row_grad(dout[i], x[i])
        elif code == RELU2:
            _relu2_row_grad(dout[i], x[i])
        else:
            _xielu_row_grad(dout[i], x[i], p, n, beta, eps)


def ungated(x: np.ndarray, out: np.ndarray, *, kind: str, numbers: Xielu = NO_NUMBERS) -> None:
    """Compute out `[N, F]` = act(x); `kind` is a key of `CODES`.

    Raises ValueError for mismatched arrays or an unknown kind.
    """
    code, shape = _checked(x, kind)
    check_array("ungated", "x", x, shape)
    check_output("ungated", "out", out, shape)
    run = _serial if x.size <= SERIAL else _parallel
    run(readonly(x), code, *(np.float32(v) for v in numbers), out)


def ungated_grad(
    dout: np.ndarray, x: np.ndarray, *, kind: str, numbers: Xielu = NO_NUMBERS
) -> None:
    """Overwrite x `[N, F]` with the gradient with respect to x, given dout `[N, F]`.

    Raises ValueError for mismatched arrays, arrays that share memory, or an unknown kind.
    """
    code, shape = _checked(x, kind)
    check_array("ungated_grad", "dout", dout, shape)
    check_output("ungated_grad", "x", x, shape)
    if np.may_share_memory(dout, x):
        raise ValueError("ungated_grad: dout and x must not share memory")
    _grad(readonly(dout), x, code, *(np.float32(v) for v in numbers))


def _checked(x: np.ndarray, kind: str) -> tuple[int, tuple[int, int]]:
    if np.ndim(x) != 2:
        raise ValueError(f"ungated: x has shape {np.shape(x)}, expected [N, F]")
    if kind not in CODES:
        raise ValueError(f"ungated: {kind!r} is not one of {', '.join(CODES)}")
    return CODES[kind], x.shape


def _sample(rng: np.random.Generator, size: str, dtype: Any, kind: str) -> Inputs:
    n, f = {"tiny": (2, 5), "one": (1, 96), "odd": (37, 301), "wide": (9, 1536)}[size]
    x = (rng.standard_normal((n, f)) * 3).astype(dtype)
    numbers = xielu_numbers(0.3, -0.4, 0.5, -1e-6) if kind == "xielu" else NO_NUMBERS
    return {"x": x, "kind": kind, "numbers": numbers}


def _forward(x: np.ndarray, kind: str, numbers: Xielu) -> np.ndarray:
    out = np.empty_like(x)
    ungated(x, out, kind=kind, numbers=numbers)
    return out


def _gradient(dout: np.ndarray, x: np.ndarray, kind: str, numbers: Xielu) -> dict[str, np.ndarray]:
    dx = x.copy()
    ungated_grad(dout, dx, kind=kind, numbers=numbers)
    return {"x": dx}


def _op(kind: str, tolerance: float, why: str, ggml: str) -> Op:
    return Op(
        name=kind,
        sizes=("tiny", "one", "odd", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, kind),
        forward_ref=ungated_ref,
        grad_ref=lambda dy, **inputs: {"x": ungated_grad_ref(dy, **inputs)},
        forward=_forward,
        grad=_gradient,
        tolerance=tolerance,
        why=why,
        ggml=ggml,
    )


OPS = (
    _op(
        "gelu",
        4e-6,
        "exp turns the absolute error of z (up to 40 x 6e-8) into a relative error",
        "ggml_gelu, which differs by up to 1e-3 (half-precision table); no gradient",
    ),
    _op(
        "relu2",
        3e-7,
        "two products",
        "ggml_relu, then ggml_sqr; for the gradient, ggml_mul by twice ggml_relu",
    ),
    _op(
        "xielu",
        1e-6,
        "exp_f32 is accurate to 2.7e-7; three additions add rounding errors",
        "ggml_xielu",
    ),
)
