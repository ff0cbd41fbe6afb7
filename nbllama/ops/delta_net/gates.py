"""The two gates of a delta net: how fast the past fades, and how much a token updates the state.

    g = a softplus(alpha + dt)          softplus(x) = log(1 + exp(x))         beta = s(b)

with s(x) = 1 / (1 + exp(-x)). Gradient:

    dalpha = dg a s(alpha + dt)         db = dbeta beta (1 - beta)

a and dt are frozen. alpha, b, g and beta are `[N, H]`, and a and dt are `[H]`, all float32. The
arrays are so small that the kernels use only one thread.

llama.cpp: `ggml_softplus`, `ggml_sigmoid`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

_ONE = np.float32(1.0)


def gates_ref(alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Compute g and beta, stacked as `[2, N, H]`, in plain numpy, in the dtype of the inputs."""
    x = alpha + dt
    soft = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return np.stack([a * soft, 1 / (1 + np.exp(-b))])


def gates_grad_ref(
    dy: np.ndarray, alpha: np.ndarray, b: np.ndarray, *, a: np.ndarray, dt: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return dalpha and db, given dy `[2, N, H]`."""
    beta = 1 / (1 + np.exp(-b))
    return dy[0] * a / (1 + np.exp(-(alpha + dt))), dy[1] * beta * (1 - beta)


# There are so few numbers that speed does not matter, so this uses numpy's exp, not `exp_f32`.
@kernel()
def _sigmoid(x):
    return _ONE / (_ONE + np.exp(-x))


@kernel()
def gates_of(alpha, b, a, dt):
    """Return g and beta for one token and head."""
    x = alpha + dt
    return a * (max(x, np.float32(0.0)) + np.log1p(np.exp(-abs(x)))), _sigmoid(b)


@kernel()
def _forward(alpha, b, a, dt, g, beta):
    for n in range(alpha.shape[0]):
        for h in range(alpha.shape[1]):
            g[n, h], beta[n, h] = gates_of(alpha[n, h], b[n, h], a[h], dt[h])


@kernel()
def _grad(dg, dbeta, alpha, b, a, dt, dalpha, db):
    for n in range(alpha.shape[0]):
        for h in range(alpha.shape[1]):
            beta = _sigmoid(b[n, h])
            dalpha[n, h] = dg[n, h] * a[h] * _sigmoid(alpha[n, h] + dt[h])
            db[n, h] = dbeta[n, h] * (beta * (_ONE - beta))


def gates(
    alpha: np.ndarray,
    b: np.ndarray,
    a: np.ndarray,
    dt: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
) -> None:
    """Write g and beta, both `[N, H]`. Raises ValueError for mismatched arrays."""
    shape = _check("gates", alpha, b, a, dt)
    check_output("gates", "g", g, shape)
    check_output("gates", "beta", beta, shape)
    _forward(*map(readonly, (alpha, b, a, dt)), g, beta)


def gates_grad(
    dg: np.ndarray,
    dbeta: np.ndarray,
    alpha: np.ndarray,
    b: np.ndarray,
    *,
    a: np.ndarray,
    dt: np.ndarray,
    dalpha: np.ndarray,
    db: np.ndarray,
) -> None:
    """Write dalpha and db, both `[N, H]`. Raises ValueError for mismatched arrays."""
    shape = _check("gates_grad", alpha, b, a, dt)
    for name, array in (("dg", dg), ("dbeta", dbeta)):
        check_array("gates_grad", name, array, shape)
    check_output("gates_grad", "dalpha", dalpha, shape)
    check_output("gates_grad", "db", db, shape)
    _grad(*map(readonly, (dg, dbeta, alpha, b, a, dt)), dalpha, db)


def _check(
    op: str, alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray
) -> tuple[int, int]:
    if np.ndim(alpha) != 2:
        raise ValueError(f"{op}: alpha has shape {np.shape(alpha)}, expected [N, H]")
    shape = alpha.shape
    check_array(op, "alpha", alpha, shape)
    check_array(op, "b", b, shape)
    check_array(op, "a", a, shape[1:])
    check_array(op, "dt", dt, shape[1:])
    return shape[0], shape[1]


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, heads = {"tiny": (2, 3), "one": (1, 16), "odd": (37, 5), "wide": (300, 32)}[size]
    inputs = {
        "alpha": 3 * rng.standard_normal((n, heads)),
        "b": 3 * rng.standard_normal((n, heads)),
        "a": -rng.uniform(0.1, 8, heads),
        "dt": rng.standard_normal(heads),
    }
    return {name: x.astype(dtype) for name, x in inputs.items()}


def _forward_op(alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray) -> np.ndarray:
    out = np.empty((2, *np.shape(alpha)), np.float32)
    gates(alpha, b, a, dt, g=out[0], beta=out[1])
    return np.stack([out[0], out[1]], axis=1)


def _forward_ref(alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Return both gates of each token, `[N, 2, H]`."""
    return np.stack(list(gates_ref(alpha, b, a, dt)), axis=1)


def _gradients(
    dy: np.ndarray, alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray
) -> Gradients:
    check_array("gates_grad", "dy", dy, (len(alpha), 2, *alpha.shape[1:]))
    dalpha, db = np.empty_like(alpha), np.empty_like(b)
    dg, dbeta = np.ascontiguousarray(dy[:, 0]), np.ascontiguousarray(dy[:, 1])
    gates_grad(dg, dbeta, alpha, b, a=a, dt=dt, dalpha=dalpha, db=db)
    return {"alpha": dalpha, "b": db}


def _gradients_ref(
    dy: np.ndarray, alpha: np.ndarray, b: np.ndarray, a: np.ndarray, dt: np.ndarray
) -> Gradients:
    dalpha, db = gates_grad_ref(np.swapaxes(dy, 0, 1), alpha, b, a=a, dt=dt)
    return {"alpha": dalpha, "b": db}


OPS = (
    Op(
        name="delta_gates",
        sizes=("tiny", "one", "odd", "wide"),
        sample=_sample,
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=_forward_op,
        grad=_gradients,
        tolerance=1e-6,
        why="rounding in float32 exp, log1p and a few products",
        ggml="ggml_softplus(alpha + dt) * a; ggml_sigmoid(b)",
    ),
)
