"""The router, which chooses the experts for each token and assigns a weight to each of them.

Scores are computed from the router's outputs z, one number for each of the E experts. The K experts
with the largest scores are chosen, and each of them receives a weight w:

| gating | scores p | weights |
|---|---|---|
| softmax | softmax(z) | u = p of the chosen experts |
| sigmoid | 1 / (1 + exp(-z)) | u = p of the chosen experts |
| chosen | z | u = softmax of the chosen experts' z |

    with `normed`    u becomes u / max(sum of u, 2^-14)
    w = scale u

If there is a bias b, it is added to the scores when experts are chosen, but not when weights are
computed. If scores are equal, the expert with the lower index comes first (in llama.cpp, an
unstable sort determines the order). A single NaN makes all scores of its token NaN; otherwise, the
NaN would be lost if its expert were not chosen.

Gradient for a given dw and a fixed choice, where du = scale dw and S is the sum of u before
`normed` is applied:

    normed              du_k becomes (du_k - sum_j du_j u_j) / S        (S above 2^-14)
    softmax             dz_e = p_e (du_e - sum_j du_j p_j)              du_e = 0 for the others
    sigmoid             dz_e = du_e p_e (1 - p_e)
    chosen              dz_k = u_k (du_k - sum_j du_j u_j), 0 for the others

z and p are `[N, E]`, bias is `[E]` or empty, and w is `[N, K]`, all float32; chosen is int32
`[N, K]`. p overwrites z. The gradient needs p and chosen.

Source: Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts
Layer" (2017); Fedus et al., "Switch Transformers" (2021); for sigmoid and bias: DeepSeek-AI,
"DeepSeek-V3" (2024). llama.cpp: `llm_graph_context::build_moe_ffn`. finetune.cpp has no router.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import exp_f32
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

SOFTMAX, SIGMOID, CHOSEN = range(3)
CODES = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "chosen": CHOSEN}
"""The integers that identify the gating functions in the kernels, by name."""

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_TINY = np.float32(2.0**-14)
NO_BIAS = np.empty(0, np.float32)


class Gating(NamedTuple):
    """How the weights are computed from the router's outputs."""

    kind: str  # a key of `CODES`
    normed: bool = False
    scale: float = 1.0


def route_ref(
    z: np.ndarray, k: int, gating: Gating, bias: np.ndarray = NO_BIAS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return p, chosen and w, computed in plain numpy in the dtype of z."""
    if gating.kind == "softmax":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
    else:
        p = 1 / (1 + np.exp(-z)) if gating.kind == "sigmoid" else z
        p = np.where(np.isnan(z).any(axis=1, keepdims=True), z.dtype.type(np.nan), p)
    scores = p + bias if bias.size else p
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
    return p, chosen, weights_ref(p, chosen, gating)


def weights_ref(p: np.ndarray, chosen: np.ndarray, gating: Gating) -> np.ndarray:
    """Return the weights `[N, K]` for a given choice of experts."""
    u = np.take_along_axis(p, chosen, axis=1)
    if gating.kind == "chosen":
        u = np.exp(u - u.max(axis=1, keepdims=True))
        u = u / u.sum(axis=1, keepdims=True)
    if gating.normed:
        u = u / np.maximum(u.sum(axis=1, keepdims=True), float(_TINY))
    return gating.scale * u


def route_grad_ref(dw: np.ndarray, p: np.ndarray, chosen: np.ndarray, gating: Gating) -> np.ndarray:
    """Return the gradient dz of `route_ref` for a fixed choice of experts."""
    du, dz = gating.scale * dw, np.zeros_like(p)
    q = np.take_along_axis(p, chosen, axis=1)
    if gating.kind == "chosen":
        q = np.exp(q - q.max(axis=1, keepdims=True))
        q = q / q.sum(axis=1, keepdims=True)
    if gating.normed:
        total = np.maximum(q.sum(axis=1, keepdims=True), float(_TINY))
        mean = (du * q).sum(axis=1, keepdims=True) / total
        du = (du - np.where(total > float(_TINY), mean, 0)) / total
    if gating.kind == "sigmoid":
        np.put_along_axis(dz, chosen, du * q * (1 - q), axis=1)
        return dz
    np.put_along_axis(dz, chosen, du * q, axis=1)
    inner = (du * q).sum(axis=1, keepdims=True)
    if gating.kind == "softmax":
        return dz - p * inner
    np.put_along_axis(dz, chosen, q * (du - inner), axis=1)
    return dz


@kernel()
def _scores(z, code):
    """Overwrite the router's outputs for one token with the scores."""
    if code == SOFTMAX:
        top = z[0]
        for e in range(z.shape[0]):
            if z[e] > top:
                top = z[e]
        total = _ZERO
        for e in range(z.shape[0]):
            z[e] = exp_f32(z[e] - top)
            total += z[e]
        for e in range(z.shape[0]):
            z[e] = z[e] / total
    elif code == SIGMOID:
        for e in range(z.shape[0]):
            z[e] = _ONE / (_ONE + exp_f32(-z[e]))
    lost = False
    for e in range(z.shape[0]):
        if z[e] != z[e]:
            lost = True
    if lost:
        z[:] = np.float32(np.nan)


@kernel()
def _choose(p, bias, chosen):
    """Write the experts with the largest scores to `chosen`, in descending order of score."""
    last = _ZERO
    before = -1
    for k in range(chosen.shape[0]):
        best = -1
        top = _ZERO
        for e in range(p.shape[0]):
            score = p[e] + bias[e] if bias.shape[0] > 0 else p[e]
            after = k == 0 or score < last or (score == last and e > before)
            if after and (best < 0 or score > top):
                best = e
                top = score
        if best < 0 or top != top:  # NaN: use the lowest unused index
            best = 0
            taken = True
            while taken:
                taken = False
                for j in range(k):
                    if chosen[j] == best:
                        taken = True
                if taken:
                    best += 1
            top = np.float32(np.nan)  # choose all remaining experts in the same way
        chosen[k] = best
        last = top
        before = best


@kernel()
def _shares(p, chosen, code, w):
    """Write the chosen experts' u, before `normed` is applied, to w; return the sum of u."""
    total = _ZERO
    for k in range(chosen.shape[0]):
        w[k] = p[chosen[k]]
    if code == CHOSEN:
        top = w[0]
        for k in range(w.shape[0]):
            if w[k] > top:
                top = w[k]
        for k in range(w.shape[0]):
            w[k] = exp_f32(w[k] - top)
            total += w[k]
        for k in range(w.shape[0]):
            w[k] = w[k] / total
        total = _ZERO
    for k in range(w.shape[0]):
        total += w[k]
    return total


@kernel()
def route_row(z, bias, code, normed, scale, chosen, w):
    """Run `route` for one token; z is `[E]`, and chosen and w are `[K]`."""
    _scores(z, code)
    _choose(z, bias, chosen)
    total = _shares(z, chosen, code, w)
    for k in range(w.shape[0]):
        if normed:
            w[k] = w[k] / (_TINY if total < _TINY else total)
        w[k] = scale * w[k]


@kernel(parallel=True)
def _route(z, bias, code, normed, scale, chosen, w):
    for n in prange(z.shape[0]):
        route_row(z[n], bias, code, normed, scale, chosen[n], w[n])


@kernel(parallel=True)
def _route_grad(dw, p, chosen, code, normed, scale, dz, u):
    """Write the gradient dz; `u` `[N, K]` is scratch memory."""
    for n in prange(p.shape[0]):
        total = _shares(p[n], chosen[n], code, u[n])
        least = total < _TINY
        if least:
            total = _TINY
        mean = _ZERO
        for k in range(dw.shape[1]):
            mean += scale * dw[n, k] * u[n, k]
        mean = mean / total
        inner = _ZERO
        for k in range(dw.shape[1]):
            du = scale * dw[n, k]
            if normed:
                du = (du if least else du - mean) / total
            inner += du * u[n, k]
        for e in range(p.shape[1]):
            dz[n, e] = -p[n, e] * inner if code == SOFTMAX else _ZERO
        for k in range(dw.shape[1]):
            du = scale * dw[n, k]
            if normed:
                du = (du if least else du - mean) / total
            e = chosen[n, k]
            if code == SOFTMAX:
                dz[n, e] += du * u[n, k]
            elif code == SIGMOID:
                dz[n, e] = du * u[n, k] * (_ONE - u[n, k])
            else:
                dz[n, e] = u[n, k] * (du - inner)


def _checked(p: np.ndarray, chosen: np.ndarray, gating: Gating) -> tuple[int, tuple[int, int]]:
    if np.ndim(p) != 2 or np.ndim(chosen) != 2:
        raise ValueError(
            f"route: z has shape {np.shape(p)}, expected [N, E], and chosen has shape "
            f"{np.shape(chosen)}, expected [N, K]"
        )
    if gating.kind not in CODES:
        raise ValueError(f"route: {gating.kind!r} is not one of {', '.join(CODES)}")
    if not 1 <= chosen.shape[1] <= p.shape[1]:
        raise ValueError(f"route: cannot choose {chosen.shape[1]} of {p.shape[1]} experts")
    return CODES[gating.kind], (len(p), chosen.shape[1])


def route(
    z: np.ndarray,
    chosen: np.ndarray,
    w: np.ndarray,
    *,
    gating: Gating,
    bias: np.ndarray = NO_BIAS,
) -> None:
    """Overwrite z `[N, E]` with the scores; write `chosen` int32 and `w`, both `[N, K]`.

    `chosen` is in descending order of score. Raises ValueError for mismatched arrays.
    """
    code, shape = _checked(z, chosen, gating)
    check_output("route", "z", z, z.shape)
    check_output("route", "chosen", chosen, shape, dtype=np.int32)
    check_output("route", "w", w, shape)
    check_array("route", "bias", bias, (z.shape[1],) if bias.size else (0,))
    _route(z, readonly(bias), code, gating.normed, np.float32(gating.scale), chosen, w)


def route_grad(
    dw: np.ndarray, p: np.ndarray, chosen: np.ndarray, dz: np.ndarray, *, gating: Gating
) -> None:
    """Write dz `[N, E]` for dw `[N, K]`; p and `chosen` are the results of `route`.

    Raises ValueError for mismatched arrays.
    """
    code, shape = _checked(p, chosen, gating)
    check_array("route_grad", "dw", dw, shape)
    check_array("route_grad", "p", p, p.shape)
    check_array("route_grad", "chosen", chosen, shape, dtype=np.int32)
    check_output("route_grad", "dz", dz, p.shape)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= p.shape[1]):
        raise ValueError("route_grad: chosen contains an expert index that is out of range")
    args = (readonly(dw), readonly(p), readonly(chosen), code, gating.normed)
    _route_grad(*args, np.float32(gating.scale), dz, np.empty(shape, np.float32))


def _sample(rng: np.random.Generator, size: str, dtype: Any, gating: Gating) -> Inputs:
    n, e, k = {"tiny": (2, 5, 2), "one": (1, 8, 2), "odd": (37, 33, 7), "wide": (9, 128, 8)}[size]
    select = tuple(rng.standard_normal(e) * 0.3) if gating.kind == "sigmoid" else ()
    z = (rng.standard_normal((n, e)) * 2).astype(dtype)
    return {"z": z, "k": k, "gating": gating, "select": select}


def _routed(
    z: np.ndarray, k: int, gating: Gating, select: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    check_array("route", "z", z, z.shape)
    p, w, chosen = z.copy(), np.empty((len(z), k), np.float32), np.empty((len(z), k), np.int32)
    route(p, chosen, w, gating=gating, bias=np.array(select, np.float32))
    return p, chosen, w


def _gradient(dw: np.ndarray, z: np.ndarray, gating: Gating, **more: Any) -> Gradients:
    p, chosen, _ = _routed(z, gating=gating, **more)
    dz = np.empty_like(z)
    route_grad(dw, p, chosen, dz, gating=gating)
    return {"z": dz}


def _gradient_ref(
    dw: np.ndarray, z: np.ndarray, k: int, gating: Gating, select: tuple[float, ...]
) -> Gradients:
    p, chosen, _ = route_ref(z, k, gating, np.array(select))
    return {"z": route_grad_ref(dw, p, chosen, gating)}


def _op(name: str, gating: Gating) -> Op:
    return Op(
        name=name,
        sizes=("tiny", "one", "odd", "wide"),
        sample=lambda rng, size, dtype: _sample(rng, size, dtype, gating),
        forward_ref=lambda z, k, gating, select: route_ref(z, k, gating, np.array(select))[2],
        grad_ref=_gradient_ref,
        forward=lambda **inputs: _routed(**inputs)[2],
        grad=_gradient,
        tolerance=4e-6,
        why="exp_f32 is accurate to 2.7e-7; sums have up to 128 terms, and some terms cancel",
        ggml="ggml_soft_max or ggml_sigmoid, ggml_argsort_top_k, ggml_get_rows; no gradient",
    )


OPS = (
    _op("router, softmax", Gating("softmax")),
    _op("router, softmax, normed", Gating("softmax", normed=True)),
    _op("router, sigmoid, normed", Gating("sigmoid", normed=True, scale=2.5)),
    _op("router, softmax of the chosen", Gating("chosen")),
)
