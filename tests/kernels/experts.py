"""Mixtures of experts: the router, an expert's activation, rows of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from nbllama.ops.attention.sinks import add_sinks
from nbllama.ops.experts.gate import (
    expert_gate,
    expert_gate_grad,
    expert_gate_grad_ref,
    expert_gate_ref,
)
from nbllama.ops.experts.router import Gating, route, route_grad, route_grad_ref, route_ref
from nbllama.ops.experts.rows import add_rows, gather_rows
from tests.kernels.case import Arrays, Run, case, normal
from tests.oracle import Graph

ROUTED = {"one": (1, 8, 2), "odd": (37, 33, 7), "large": (1024, 128, 8)}
GATE = {"one": (1, 96), "odd": (37, 301), "large": (1024, 768)}
ROWS = {"one": (1, 33, 1), "odd": (37, 101, 5), "large": (1024, 2048, 64)}
NORMED = Gating("softmax", normed=True)


def _route(size: str) -> Run:
    n, e, k = ROUTED[size]
    z = 2 * normal(1, n, e)
    p, w, chosen = np.empty_like(z), np.empty((n, k), np.float32), np.empty((n, k), np.int32)

    def ours() -> Arrays:
        np.copyto(p, z)
        route(p, chosen, w, gating=NORMED)
        return {"p": p, "chosen": chosen.astype(np.float32), "w": w}

    def reference(z: np.ndarray) -> Arrays:
        p, chosen, w = route_ref(z, k, NORMED)
        return {"p": p, "chosen": chosen.astype(z.dtype), "w": w}

    return Run({"z": z}, ours, reference, None, 8 * z.size)


def _route_grad(size: str) -> Run:
    n, e, k = ROUTED[size]
    z, dw = 2 * normal(1, n, e), normal(2, n, k)
    p, chosen, _ = route_ref(z, k, NORMED)
    dz = np.empty_like(p)

    def ours() -> Arrays:
        route_grad(dw, p, chosen, dz, gating=NORMED)
        return {"dz": dz}

    def reference(dw: np.ndarray, p: np.ndarray) -> Arrays:
        return {"dz": route_grad_ref(dw, p, chosen, NORMED)}

    return Run({"dw": dw, "p": p}, ours, reference, None, 8 * z.size)


def _gate(size: str, kind: str) -> Run:
    gate, up = 5 * normal(1, *GATE[size]), 5 * normal(2, *GATE[size])
    w, out = abs(normal(3, len(gate))), np.empty_like(gate)

    def ours() -> Arrays:
        expert_gate(gate, up, w, out, kind=kind)
        return {"out": out}

    def reference(**inputs: np.ndarray) -> Arrays:
        return {"out": expert_gate_ref(**inputs, kind=kind)}

    def theirs(g: Graph) -> dict[str, Any]:
        if kind == "silu":
            act = g.apply("ggml_swiglu_split", gate, up)
        else:
            act = g.apply("ggml_swiglu_oai", gate, up, 1.702, 7.0)
        return {"out": g.apply("ggml_mul", act, w[:, None])}

    return Run({"gate": gate, "up": up, "w": w}, ours, reference, theirs, 12 * out.size)


def _gate_grad(size: str, kind: str) -> Run:
    dout, gate, up = (5 * normal(i, *GATE[size]) for i in range(3))
    w = abs(normal(3, len(gate)))
    dgate, dup, dw = np.empty_like(gate), np.empty_like(up), np.empty_like(w)

    def ours() -> Arrays:
        np.copyto(dgate, gate)
        np.copyto(dup, up)
        expert_gate_grad(dout, dgate, dup, w, kind=kind, dw=dw)
        return {"dgate": dgate, "dup": dup, "dw": dw}

    def reference(**inputs: np.ndarray) -> Arrays:
        found = expert_gate_grad_ref(**inputs, kind=kind)
        return dict(zip(("dgate", "dup", "dw"), found, strict=True))

    inputs = {"dout": dout, "gate": gate, "up": up, "w": w}
    return Run(inputs, ours, reference, None, 20 * gate.size)


def _sinks(size: str) -> Run:
    n, h, d = {"one": (1, 3, 32), "odd": (37, 5, 33), "large": (1024, 64, 64)}[size]
    o, lse, sinks = normal(1, n, h, d), normal(2, n, h), normal(3, h)
    made, both = np.empty_like(o), np.empty_like(lse)

    def ours() -> Arrays:
        np.copyto(made, o)
        np.copyto(both, lse)
        add_sinks(made, both, sinks)
        return {"o": made, "lse": both}

    def reference(o: np.ndarray, lse: np.ndarray, sinks: np.ndarray) -> Arrays:
        both = np.logaddexp(lse, sinks)
        return {"o": o * np.exp(lse - both)[:, :, None], "lse": both}

    return Run({"o": o, "lse": lse, "sinks": sinks}, ours, reference, None, 8 * o.size)


def _rows(size: str) -> Run:
    n, width, m = ROWS[size]
    x, rows = normal(1, n, width), np.sort(np.random.default_rng(2).permutation(n)[:m])
    y, out = np.empty((m, width), np.float32), np.empty_like(x)

    def ours() -> Arrays:
        np.copyto(out, x)
        add_rows(gather_rows(x, rows, y), rows, out)
        return {"out": out}

    def reference(x: np.ndarray) -> Arrays:
        out = x.copy()
        out[rows] += x[rows]
        return {"out": out}

    return Run({"x": x}, ours, reference, None, 12 * y.size)


NONE = "none: ggml has no such gradient"
case("router", "small", route, bound=2e-6, llama="none: three separate ops",
     shape="1024 x 128, 8 chosen")(_route)  # fmt: skip
case("router, gradient", "small", route_grad, bound=4e-6, llama=NONE,
     shape="1024 x 128, 8 chosen")(_route_grad)  # fmt: skip
case("expert gate", "small", expert_gate, bound=2e-6, llama="ggml_swiglu_split, ggml_mul",
     shape="1024 x 768")(partial(_gate, kind="silu"))  # fmt: skip
case("expert gate, clamped", "small", expert_gate, bound=2e-6, llama="ggml_swiglu_oai, ggml_mul",
     shape="1024 x 768")(partial(_gate, kind="clamped"))  # fmt: skip
case("expert gate, gradient", "small", expert_gate_grad, bound=3e-6, llama=NONE,
     shape="1024 x 768")(partial(_gate_grad, kind="silu"))  # fmt: skip
case("expert gate, clamped, gradient", "small", expert_gate_grad, bound=3e-6, llama=NONE,
     shape="1024 x 768")(partial(_gate_grad, kind="clamped"))  # fmt: skip
case("attention sinks", "attention", add_sinks, bound=1e-6, shape="1024 x 64 heads of 64",
     llama="none: within ggml_soft_max_ext")(_sinks)  # fmt: skip
case("rows of an expert", "small", gather_rows, add_rows, bound=1e-7, shape="64 of 1024 x 2048",
     llama="none: within ggml_mul_mat_id")(_rows)  # fmt: skip
