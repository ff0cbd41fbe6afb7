"""The gated activation of an expert, multiplied by the router's weight for this expert.

    out = w act(gate, up)

| kind | act(gate, up) |
|---|---|
| silu | gate s(gate) up |
| clamped | g s(1.702 g) (u + 1) with g = min(gate, 7) and u = min(max(up, -7), 7) |

where s(z) = 1 / (1 + exp(-z)). The weight is applied before the expert's last matrix product, not
after it. The result is the same because the product is linear, and the gradient with respect to w
can then be computed without the output of the product.

Gradient for silu, with s = s(gate):

    dgate = dout w up (s + gate s (1 - s))      dup = dout w gate s
    dw = sum_f dout act(gate, up)

For clamped, s = s(1.702 g), and gate and up are replaced with g and u + 1. The derivative of s has
an additional factor of 1.702. The gradient with respect to values that were clamped is 0:

    dgate = dout w (u + 1) (s + 1.702 g s (1 - s))  for gate < 7
    dup = dout w g s                                for -7 < up < 7

gate, up, out and dout are `[N, F]`, and w and dw are `[N]`, all float32. The gradient needs gate
and up, which it overwrites with dgate and dup.

Source: Shazeer, "GLU Variants Improve Transformer" (2020); the reference code of gpt-oss for the
clamped form. llama.cpp: `ggml_swiglu_split`, `ggml_swiglu_oai`. finetune.cpp has no experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

SILU, CLAMPED = range(2)
CODES = {"silu": SILU, "clamped": CLAMPED}
"""The integers that identify the activations in the kernels, by name."""

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LIMIT, _SLOPE = np.float32(7.0), np.float32(1.702)


def _parts_ref(
    gate: np.ndarray, up: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return g, u (u + 1 for 'clamped'), s, and the factor of g in s: 1 or 1.702."""
    limit, slope = float(_LIMIT), 1.702
    if kind == "silu":
        return gate, up, (1 + np.tanh(gate / 2)) / 2, np.ones_like(gate)
    g, u = np.minimum(gate, limit), np.clip(up, -limit, limit) + 1
    return g, u, (1 + np.tanh(slope * g / 2)) / 2, np.full_like(gate, slope)


def expert_gate_ref(gate: np.ndarray, up: np.ndarray, w: np.ndarray, kind: str) -> np.ndarray:
    """Compute w act(gate, up) in plain numpy, in the dtype of the inputs."""
    g, u, s, _ = _parts_ref(gate, up, kind)
    return w[:, None] * (g * s * u)


def expert_gate_grad_ref(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray, w: np.ndarray, *, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients (dgate, dup, dw) of `expert_gate_ref`."""
    g, u, s, slope = _parts_ref(gate, up, kind)
    d = dout * w[:, None]
    dgate, dup = d * u * (s + slope * g * s * (1 - s)), d * g * s
    if kind == "clamped":
        limit = float(_LIMIT)
        dgate = np.where(gate >= limit, 0, dgate)  # NaN stays NaN
        dup = np.where(np.abs(up) >= limit, 0, dup)
    return dgate, dup, (dout * g * s * u).sum(axis=1)


@kernel()
def silu_row(gate, up, w, out):
    """Compute `out` for one token with weight w, using the activation 'silu'."""
    for f in range(gate.shape[0]):
        a = gate[f]
        out[f] = w * (a / (_ONE + exp_f32(-a)) * up[f])


@kernel()
def clamped_row(gate, up, w, out):
    """Compute `out` for one token with weight w, using the activation 'clamped'."""
    for f in range(gate.shape[0]):
        g = _LIMIT if gate[f] > _LIMIT else gate[f]  # NaN stays NaN
        u = _LIMIT if up[f] > _LIMIT else up[f]
        u = -_LIMIT if u < -_LIMIT else u
        out[f] = w * (g / (_ONE + exp_f32(-_SLOPE * g)) * (u + _ONE))


@kernel(fast=True)
def _silu_weight(dout, gate, up):
    total = _ZERO
    for f in range(gate.shape[0]):
        a = gate[f]
        total += dout[f] * (a / (_ONE + exp_f32(-a)) * up[f])
    return total


@kernel(fast=True)
def _clamped_weight(dout, gate, up):
    total = _ZERO
    for f in range(gate.shape[0]):
        g = _LIMIT if gate[f] > _LIMIT else gate[f]
        u = _LIMIT if up[f] > _LIMIT else up[f]
        u = -_LIMIT if u < -_LIMIT else u
        total += dout[f] * (g / (_ONE + exp_f32(-_SLOPE * g)) * (u + _ONE))
    return total


@kernel()
def _silu_grad(dout, gate, up, w):
    for f in range(gate.shape[0]):
        a = gate[f]
        s = _ONE / (_ONE + exp_f32(-a))
        act = a * s
        d = dout[f] * w
        gate[f] = d * up[f] * (s + act * (_ONE - s))
        up[f] = d * act


@kernel()
def _clamped_grad(dout, gate, up, w):
    for f in range(gate.shape[0]):
        g = _LIMIT if gate[f] > _LIMIT else gate[f]
        u = _LIMIT if up[f] > _LIMIT else up[f]
        u = -_LIMIT if u < -_LIMIT else u
        s = _ONE / (_ONE + exp_f32(-_SLOPE * g))
        act = g * s
        d = dout[f] * w
        dgate = d * (u + _ONE) * (s + _SLOPE * act * (_ONE - s))
        dup = d * act
        gate[f] = _ZERO if gate[f] >= _LIMIT else dgate
        up[f] = _ZERO if up[f] >= _LIMIT or up[f] <= -_LIMIT else dup


@kernel(parallel=True)
def _forward_rows(gate, up, w, code, out):
    for n in prange(gate.shape[0]):
        if code == SILU:
            silu_row(gate[n], up[n], w[n], out[n])
        else:
            clamped_row(gate[n], up[n], w[n], out[n])


@kernel(parallel=True)
def _grad_rows(dout, gate, up, w, code, dw):
    for n in prange(gate.shape[0]):
        if code == SILU:
            dw[n] = _silu_weight(dout[n], gate[n], up[n])
            _silu_grad(dout[n], gate[n], up[n], w[n])
        else:
            dw[n] = _clamped_weight(dout[n], gate[n], up[n])
            _clamped_grad(dout[n], gate[n], up[n], w[n])


def _checked(gate: np.ndarray, kind: str) -> tuple[int, tuple[int, int]]:
    if np.ndim(gate) != 2:
        raise ValueError(f"expert_gate: gate has shape {np.shape(gate)}, expected [N, F]")
    if kind not in CODES:
        raise ValueError(f"expert_gate: {kind!r} is not one of {', '.join(CODES)}")
    return CODES[kind], gate.shape


def expert_gate(
    gate: np.ndarray, up: np.ndarray, w: np.ndarray, out: np.ndarray, *, kind: str
) -> None:
    """Compute out `[N, F]` = w act(gate, up); `kind` is a key of `CODES`.

    Raises ValueError for mismatched arrays or an unknown kind.
    """
    code, shape = _checked(gate, kind)
    for name, array in (("gate", gate), ("up", up)):
        check_array("expert_gate", name, array, shape)
    check_array("expert_gate", "w", w, shape[:1])
    check_output("expert_gate", "out", out, shape)
    _forward_rows(readonly(gate), readonly(up), readonly(w), code, out)


def expert_gate_grad(
    dout: np.ndarray,
    gate: np.ndarray,
    up: np.ndarray,
    w: np.ndarray,
    *,
    kind: str,
    dw: np.ndarray,
) -> None:
    """Overwrite gate and up `[N, F]` with their gradients, and write the gradient dw `[N]`.

    Raises ValueError for mismatched arrays, arrays that share memory, or an unknown kind.
    """
    code, shape = _checked(gate, kind)
    check_array("expert_gate_grad", "dout", dout, shape)
    check_array("expert_gate_grad", "w", w, shape[:1])
    for name, array in (("gate", gate), ("up", up)):
        check_output("expert_gate_grad", name, array, shape)
    check_output("expert_gate_grad", "dw", dw, shape[:1])
    for a, b in ((dout, gate), (dout, up), (gate, up)):
        if np.may_share_memory(a, b):
            raise ValueError("expert_gate_grad: dout, gate and up must not share memory")
    _grad_rows(readonly(dout), gate, up, readonly(w), code, dw)


def _sample(rng: np.random.Generator, size: str, dtype: Any, kind: str) -> Inputs:
    n, f = {"tiny": (2, 3), "one": (1, 96), "odd": (37, 301), "wide": (9, 1536)}[size]
    gate, up = (rng.standard_normal((n, f)).astype(dtype) * 5 for _ in range(2))
    return {"gate": gate, "up": up, "w": rng.random(n).astype(dtype), "kind": kind}


def _forward(gate: np.ndarray, up: np.ndarray, w: np.ndarray, kind: str) -> np.ndarray:
    out = np.empty_like(gate)
    expert_gate(gate, up, w, out, kind=kind)
    return out


def _gradients(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray, w: np.ndarray, kind: str
) -> Gradients:
    dgate, dup, dw = gate.copy(), up.copy(), np.empty_like(w)
    expert_gate_grad(dout, dgate, dup, w, kind=kind, dw=dw)
    return {"gate": dgate, "up": dup, "w": dw}


def _gradients_ref(
    dout: np.ndarray, gate: np.ndarray, up: np.ndarray, w: np.ndarray, kind: str
) -> Gradients:
    found = expert_gate_grad_ref(dout, gate, up, w, kind=kind)
    return dict(zip(("gate", "up", "w"), found, strict=True))


def _op(kind: str, ggml: str) -> Op:
    return Op(
        name=f"expert gate, {kind}",
        sizes=("tiny", "one", "odd", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, kind),
        forward_ref=expert_gate_ref,
        grad_ref=_gradients_ref,
        forward=_forward,
        grad=_gradients,
        tolerance=3e-6,
        why="exp_f32 is accurate to 2.7e-7 for z up to 12; dw is a sum of up to 1536 terms",
        ggml=ggml,
    )


OPS = (
    _op("silu", "ggml_swiglu_split(gate, up), ggml_mul; no gradient"),
    _op("clamped", "ggml_swiglu_oai(gate, up, 1.702, 7), ggml_mul; no gradient"),
)
