"""The gated activation in the middle of a feed-forward layer: SwiGLU or GeGLU.

    out = act(gate) * up            act(a) = a * s(z(a))            s(z) = 1 / (1 + exp(-z))

    silu                z = a
    gelu, tanh form     z = 2 sqrt(2/pi) (a + 0.044715 a^3)     since (1 + tanh(v)) / 2 = s(2v)

Gradient:

    dgate = dout * up * (s + a s (1 - s) dz/da)         dup = dout * act(gate)

All arrays are float32 `[N, F]`. Because gate and up are the widest arrays in a layer, the gradient
saves memory by overwriting them with dgate and dup. The kernel receives each of these arrays as a
single argument. If the same array were passed both as an input and as an output, LLVM's overlap
check would fail, and the loop would run 5 times slower because it would not be vectorised.

Source: Shazeer, "GLU Variants Improve Transformer" (2020); Hendrycks and Gimpel, "Gaussian Error
Linear Units" (2016). llama.cpp: `ggml_swiglu_split`, `ggml_silu_back`, and `ggml_geglu_split`,
whose results differ by up to 1e-3 because it reads GELU from a float16 table. finetune.cpp calls
the tensors t27 and t28.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import SERIAL, Gradients, Inputs, Op, check_array, check_output, readonly

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = _LINEAR * 0.044715
_LINEAR32 = np.float32(_LINEAR)
_CUBIC32 = np.float32(_CUBIC)
_CUBIC32_3 = np.float32(3 * _CUBIC)
_ONE = np.float32(1.0)


def _sigmoid_ref(a: np.ndarray, gelu: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return s(z(a)) and dz/da, which have the shape of a."""
    z = _LINEAR * a + _CUBIC * a**3 if gelu else a
    slope = _LINEAR + 3 * _CUBIC * a**2 if gelu else np.ones_like(a)
    return (1 + np.tanh(z / 2)) / 2, slope  # equals s(z), without overflow


def gated_ref(gate: np.ndarray, up: np.ndarray, gelu: bool) -> np.ndarray:
    """Compute act(gate) * up in plain numpy, in the dtype of the inputs."""
    s, _ = _sigmoid_ref(gate, gelu)
    return gate * s * up


def gated_grad_ref(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray, gelu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients (dgate, dup) of `gated_ref`."""
    s, slope = _sigmoid_ref(gate, gelu)
    return dout * up * (s + gate * s * (1 - s) * slope), dout * gate * s


@kernel()
def silu_row(gate, up, out):
    """Compute out = silu(gate) * up for one row."""
    for f in range(gate.shape[0]):
        a = gate[f]
        out[f] = a / (_ONE + exp_f32(-a)) * up[f]


@kernel()
def gelu_row(gate, up, out):
    """Compute out = gelu(gate) * up for one row, using the tanh form of gelu."""
    for f in range(gate.shape[0]):
        a = gate[f]
        z = a * (_LINEAR32 + _CUBIC32 * a * a)
        out[f] = a / (_ONE + exp_f32(-z)) * up[f]


@kernel()
def _silu_row_grad(dout, gate, up):
    for f in range(gate.shape[0]):
        a = gate[f]
        s = _ONE / (_ONE + exp_f32(-a))
        act = a * s
        gate[f] = dout[f] * up[f] * (s + act * (_ONE - s))
        up[f] = dout[f] * act


@kernel()
def _gelu_row_grad(dout, gate, up):
    for f in range(gate.shape[0]):
        a = gate[f]
        s = _ONE / (_ONE + exp_f32(-a * (_LINEAR32 + _CUBIC32 * a * a)))
        act = a * s
        slope = _LINEAR32 + _CUBIC32_3 * a * a
        gate[f] = dout[f] * up[f] * (s + act * (_ONE - s) * slope)
        up[f] = dout[f] * act


@kernel()
def _serial(gate, up, gelu, out):
    for n in range(gate.shape[0]):
        if gelu:
            gelu_row(gate[n], up[n], out[n])
        else:
            silu_row(gate[n], up[n], out[n])


@kernel(parallel=True)
def _parallel(gate, up, gelu, out):
    for n in prange(gate.shape[0]):
        if gelu:
            gelu_row(gate[n], up[n], out[n])
        else:
            silu_row(gate[n], up[n], out[n])


@kernel(parallel=True)
def _grad(dout, gate, up, gelu):
    for n in prange(gate.shape[0]):
        if gelu:
            _gelu_row_grad(dout[n], gate[n], up[n])
        else:
            _silu_row_grad(dout[n], gate[n], up[n])


def gated(gate: np.ndarray, up: np.ndarray, out: np.ndarray, *, gelu: bool = False) -> None:
    """Compute out `[N, F]` = act(gate) * up: SwiGLU, or GeGLU if `gelu` is set.

    Raises ValueError for mismatched arrays.
    """
    shape = _shape(gate)
    check_array("gated", "gate", gate, shape)
    check_array("gated", "up", up, shape)
    check_output("gated", "out", out, shape)
    run = _serial if gate.size <= SERIAL else _parallel
    run(readonly(gate), readonly(up), gelu, out)


def gated_grad(dout: np.ndarray, gate: np.ndarray, up: np.ndarray, *, gelu: bool = False) -> None:
    """Overwrite gate and up `[N, F]` with their gradients, given dout `[N, F]`.

    Raises ValueError for mismatched arrays or for arrays that share memory.
    """
    shape = _shape(gate)
    check_array("gated_grad", "dout", dout, shape)
    check_output("gated_grad", "gate", gate, shape)
    check_output("gated_grad", "up", up, shape)
    if any(np.may_share_memory(*pair) for pair in ((dout, gate), (dout, up), (gate, up))):
        raise ValueError("gated_grad: dout, gate and up must not share memory")
    _grad(readonly(dout), gate, up, gelu)


def _shape(gate: np.ndarray) -> tuple[int, int]:
    if np.ndim(gate) != 2:
        raise ValueError(f"gated: gate has shape {np.shape(gate)}, expected [N, F]")
    return gate.shape


def _sample(rng: np.random.Generator, size: str, dtype: Any, gelu: bool) -> Inputs:
    n, f = {"tiny": (2, 3), "one": (1, 96), "odd": (37, 301), "wide": (9, 1536)}[size]
    gate, up = (rng.standard_normal((n, f)).astype(dtype) * 3 for _ in range(2))
    return {"gate": gate, "up": up, "gelu": gelu}


def _forward(gate: np.ndarray, up: np.ndarray, gelu: bool) -> np.ndarray:
    out = np.empty_like(gate)
    gated(gate, up, out, gelu=gelu)
    return out


def _gradients(dout: np.ndarray, gate: np.ndarray, up: np.ndarray, gelu: bool) -> Gradients:
    dgate, dup = gate.copy(), up.copy()
    gated_grad(dout, dgate, dup, gelu=gelu)
    return {"gate": dgate, "up": dup}


def _gradients_ref(dout: np.ndarray, gate: np.ndarray, up: np.ndarray, gelu: bool) -> Gradients:
    dgate, dup = gated_grad_ref(dout, gate, up, gelu)
    return {"gate": dgate, "up": dup}


def _op(name: str, gelu: bool, tolerance: float, why: str, ggml: str) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, gelu),
        forward_ref=gated_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=tolerance,
        why=why,
        ggml=ggml,
    )


OPS = (
    _op(
        name="swiglu",
        gelu=False,
        tolerance=1e-6,
        why="exp_f32 is accurate to 2.7e-7, and five more operations are rounded",
        ggml="ggml_swiglu_split(gate, up); ggml_silu_back(dout * up, gate)",
    ),
    _op(
        name="geglu",
        gelu=True,
        tolerance=4e-6,
        why="exp turns the absolute error of z (6e-8 |z|, with |z| up to 40) into a relative error",
        ggml="ggml_geglu_split(gate, up), which differs by up to 1e-3 (half-precision table)",
    ),
)
