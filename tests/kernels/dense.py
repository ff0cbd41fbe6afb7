"""LayerNorm, and the activations of feed-forward layers of two matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nbllama.ops.layer_norm import (
    layer_norm,
    layer_norm_grad,
    layer_norm_grad_ref,
    layer_norm_grad_weight,
    layer_norm_ref,
)
from nbllama.ops.ungated import (
    NO_NUMBERS,
    ungated,
    ungated_grad,
    ungated_grad_ref,
    ungated_ref,
    xielu_numbers,
)
from tests.kernels.case import Arrays, Run, case, normal
from tests.kernels.elements import GATED
from tests.kernels.tokens import NORM
from tests.oracle import Graph

NO_GRADIENT = "none: ggml has no gradient for LayerNorm"
XIELU_STORED = (-0.4, 0.3, 0.5, -1e-6)  # alpha_n, alpha_p, beta, eps: in ggml's order


def _norm(size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, w, b, dy."""
    n, c = NORM[size]
    return normal(1, n, c) + 0.5, 1 + normal(2, c) / 10, normal(3, c), normal(4, n, c)


@case("layer_norm", "small", layer_norm, bound=1e-6, llama="ggml_norm, ggml_mul, ggml_add",
      shape="1024 x 576")  # fmt: skip
def _layer_norm(size: str) -> Run:
    x, w, b, _ = _norm(size)
    y, (mean, rstd) = np.empty_like(x), np.empty((2, len(x)), np.float32)

    def ours() -> Arrays:
        layer_norm(x, w, b, 1e-5, y=y, mean=mean, rstd=rstd)
        return {"y": y}

    def theirs(g: Graph) -> dict[str, Any]:
        weighted = g.apply("ggml_mul", g.apply("ggml_norm", x, 1e-5), w)
        return {"y": g.apply("ggml_add", weighted, b)}

    return Run(
        {"x": x, "w": w, "b": b, "eps": 1e-5},
        ours,
        lambda **i: {"y": layer_norm_ref(**i)},
        theirs,
        8 * x.size,
    )


@case("layer_norm, gradient with respect to x", "small", layer_norm_grad, bound=1e-6,
      llama=NO_GRADIENT, shape="1024 x 576")  # fmt: skip
def _layer_norm_grad(size: str) -> Run:
    x, w, b, dy = _norm(size)
    dx, (mean, rstd) = np.empty_like(x), np.empty((2, len(x)), np.float32)
    layer_norm(x, w, b, 1e-5, y=np.empty_like(x), mean=mean, rstd=rstd)

    def ours() -> Arrays:
        layer_norm_grad(dy, x, w, mean=mean, rstd=rstd, dx=dx)
        return {"dx": dx}

    inputs = {"dy": dy, "x": x, "w": w, "eps": 1e-5}
    return Run(inputs, ours, lambda **i: {"dx": layer_norm_grad_ref(**i)[0]}, None, 12 * x.size)


@case("layer_norm, gradient with respect to w", "small", layer_norm_grad_weight, bound=1e-6,
      llama="ggml_norm, ggml_mul, ggml_repeat_back", shape="1024 x 576")  # fmt: skip
def _layer_norm_grad_weight(size: str) -> Run:
    x, w, b, dy = _norm(size)
    dw, (mean, rstd) = np.empty_like(w), np.empty((2, len(x)), np.float32)
    layer_norm(x, w, b, 1e-5, y=np.empty_like(x), mean=mean, rstd=rstd)

    def ours() -> Arrays:
        dw[:] = 0
        layer_norm_grad_weight(dy, x, mean=mean, rstd=rstd, dw=dw)
        return {"dw": dw}

    def theirs(g: Graph) -> dict[str, Any]:
        products = g.apply("ggml_mul", g.apply("ggml_norm", x, 1e-5), dy)
        return {"dw": g.apply("ggml_repeat_back", products, w)}

    inputs = {"dy": dy, "x": x, "w": w, "eps": 1e-5}
    return Run(inputs, ours, lambda **i: {"dw": layer_norm_grad_ref(**i)[1]}, theirs, 8 * x.size)


UNGATED: dict[str, Callable[[Graph, np.ndarray], Any]] = {  # llama.cpp's op for a graph
    "gelu": lambda g, x: g.apply("ggml_gelu", x),
    "relu2": lambda g, x: g.apply("ggml_sqr", g.apply("ggml_relu", x)),
    "xielu": lambda g, x: g.apply("ggml_xielu", x, *XIELU_STORED),
}


def _numbers(kind: str) -> Any:
    alpha_n, alpha_p, beta, eps = XIELU_STORED
    return xielu_numbers(alpha_p, alpha_n, beta, eps) if kind == "xielu" else NO_NUMBERS


def _ungated(size: str, kind: str) -> Run:
    x, numbers = 3 * normal(1, *GATED[size]), _numbers(kind)
    out = np.empty_like(x)

    def ours() -> Arrays:
        ungated(x, out, kind=kind, numbers=numbers)
        return {"out": out}

    return Run(
        {"x": x},
        ours,
        lambda x: {"out": ungated_ref(x, kind, numbers)},
        lambda g: {"out": UNGATED[kind](g, x)},
        8 * out.size,
    )


def _ungated_grad(size: str, kind: str) -> Run:
    x, dout = (3 * normal(i, *GATED[size]) for i in range(2))
    dx, numbers = np.empty_like(x), _numbers(kind)

    def ours() -> Arrays:
        np.copyto(dx, x)
        ungated_grad(dout, dx, kind=kind, numbers=numbers)
        return {"dx": dx}

    def reference(dout: np.ndarray, x: np.ndarray) -> Arrays:
        return {"dx": ungated_grad_ref(dout, x, kind, numbers)}

    def theirs(g: Graph) -> dict[str, Any]:
        slope = g.apply("ggml_scale", g.apply("ggml_relu", x), 2.0)
        return {"dx": g.apply("ggml_mul", dout, slope)}

    known = theirs if kind == "relu2" else None
    return Run({"dout": dout, "x": x}, ours, reference, known, 12 * x.size)


# ggml looks gelu up in a float16 table: 11 bits
case("gelu", "small", ungated, bound=4e-6, llama="ggml_gelu", llama_bound=1e-3,
     shape="1024 x 1536")(partial(_ungated, kind="gelu"))  # fmt: skip
case("relu squared", "small", ungated, bound=3e-7, llama="ggml_relu, ggml_sqr",
     shape="1024 x 1536")(partial(_ungated, kind="relu2"))  # fmt: skip
case("xielu", "small", ungated, bound=1e-6, llama="ggml_xielu",
     shape="1024 x 1536")(partial(_ungated, kind="xielu"))  # fmt: skip
case("gelu, gradient", "small", ungated_grad, bound=4e-6, shape="1024 x 1536",
     llama="none: ggml has no gradient for gelu")(partial(_ungated_grad, kind="gelu"))  # fmt: skip
case("relu squared, gradient", "small", ungated_grad, bound=3e-7, shape="1024 x 1536",
     llama="ggml_relu, ggml_scale, ggml_mul")(partial(_ungated_grad, kind="relu2"))  # fmt: skip
case("xielu, gradient", "small", ungated_grad, bound=1e-6, shape="1024 x 1536",
     llama="none: ggml has no xielu gradient")(partial(_ungated_grad, kind="xielu"))  # fmt: skip
