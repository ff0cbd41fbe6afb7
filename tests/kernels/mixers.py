"""Blocks without attention: short convolutions and gated delta nets; gates of outputs."""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np

from nbllama.ops.delta_net.conv import (
    conv_silu,
    conv_silu_grad,
    conv_silu_grad_ref,
    conv_silu_ref,
)
from nbllama.ops.delta_net.delta_net import delta_net, delta_net_ref
from nbllama.ops.delta_net.gates import gates, gates_grad, gates_grad_ref, gates_ref
from nbllama.ops.delta_net.grad import delta_net_grad, delta_net_grad_ref
from nbllama.ops.out_gate import out_gate, out_gate_grad, out_gate_grad_ref, out_gate_ref
from nbllama.ops.short_conv import (
    short_conv,
    short_conv_grad,
    short_conv_grad_ref,
    short_conv_ref,
)
from tests.kernels.case import Arrays, Run, case, normal
from tests.oracle import Graph

CONV = {"one": (1, 32), "odd": (37, 101), "large": (1024, 1024)}
NO_GRADIENT = "none: ggml has no such gradient"


def _whole(n: int) -> np.ndarray:
    return np.array([0, n], np.int32)


def _padded(u: np.ndarray, taps: int) -> np.ndarray:
    """Channels of one sequence with zeros in front, `[1, C, K - 1 + N]`."""
    zeros = np.zeros((taps - 1, u.shape[1]), u.dtype)
    return np.ascontiguousarray(np.concatenate([zeros, u]).T)[None]


@case("short_conv", "small", short_conv, bound=1e-6, llama="ggml_ssm_conv, ggml_mul",
      shape="1024 x 1024, 3 taps")  # fmt: skip
def _short_conv(size: str) -> Run:
    n, width = CONV[size]
    bcx, w, y = normal(1, n, 3 * width), normal(2, 3, width), np.empty((n, width), np.float32)

    def ours() -> Arrays:
        short_conv(bcx, w, _whole(n), y)
        return {"y": y}

    def theirs(g: Graph) -> dict[str, Any]:
        b, c, x = (np.ascontiguousarray(part) for part in np.split(bcx, 3, axis=1))
        conv = g.apply("ggml_ssm_conv", _padded(b * x, 3), np.ascontiguousarray(w.T))
        return {"y": g.apply("ggml_mul", conv, c)}

    inputs = {"bcx": bcx, "w": w, "offsets": _whole(n)}
    return Run(inputs, ours, lambda **i: {"y": short_conv_ref(**i)}, theirs, 16 * y.size)


@case("short_conv, gradient", "small", short_conv_grad, bound=1e-6, llama=NO_GRADIENT,
      shape="1024 x 1024, 3 taps")  # fmt: skip
def _short_conv_grad(size: str) -> Run:
    n, width = CONV[size]
    bcx, w, dy = normal(1, n, 3 * width), normal(2, 3, width), normal(3, n, width)
    out = np.empty_like(bcx)

    def ours() -> Arrays:
        short_conv_grad(dy, bcx, w, _whole(n), dbcx=out)
        return {"dbcx": out}

    inputs = {"dy": dy, "bcx": bcx, "w": w, "offsets": _whole(n)}
    return Run(inputs, ours, lambda **i: {"dbcx": short_conv_grad_ref(**i)}, None, 28 * dy.size)


@case("conv_silu", "small", conv_silu, bound=2e-6, llama="ggml_ssm_conv, ggml_silu",
      shape="1024 x 1024, 4 taps")  # fmt: skip
def _conv_silu(size: str) -> Run:
    n, width = CONV[size]
    u, w = normal(1, n, width), normal(2, 4, width)
    y = np.empty_like(u)

    def ours() -> Arrays:
        conv_silu(u, w, _whole(n), y)
        return {"y": y}

    def theirs(g: Graph) -> dict[str, Any]:
        conv = g.apply("ggml_ssm_conv", _padded(u, 4), np.ascontiguousarray(w.T))
        return {"y": g.apply("ggml_silu", conv)}

    inputs = {"u": u, "w": w, "offsets": _whole(n)}
    return Run(inputs, ours, lambda **i: {"y": conv_silu_ref(**i)}, theirs, 8 * y.size)


@case("conv_silu, gradient", "small", conv_silu_grad, bound=2e-6, llama=NO_GRADIENT,
      shape="1024 x 1024, 4 taps")  # fmt: skip
def _conv_silu_grad(size: str) -> Run:
    n, width = CONV[size]
    u, w, dy = normal(1, n, width), normal(2, 4, width), normal(3, n, width)
    du, given, memory = (np.empty_like(u) for _ in range(3))

    def ours() -> Arrays:
        np.copyto(given, dy)
        conv_silu_grad(given, u, w, _whole(n), du=du, memory=memory)
        return {"du": du}

    inputs = {"dy": dy, "u": u, "w": w, "offsets": _whole(n)}
    return Run(inputs, ours, lambda **i: {"du": conv_silu_grad_ref(**i)}, None, 20 * u.size)


GATES = {"one": (1, 16), "odd": (37, 5), "large": (1024, 16)}


def _gate_inputs(size: str) -> dict[str, np.ndarray]:
    n, heads = GATES[size]
    a = -np.abs(normal(3, heads)) - np.float32(0.1)
    return {"alpha": normal(1, n, heads), "b": normal(2, n, heads), "a": a, "dt": normal(4, heads)}


@case("delta_gates", "small", gates, bound=1e-6, llama="ggml_softplus, ggml_sigmoid",
      shape="1024 x 16")  # fmt: skip
def _gates(size: str) -> Run:
    inputs = _gate_inputs(size)
    g, beta = (np.empty_like(inputs["alpha"]) for _ in range(2))

    def ours() -> Arrays:
        gates(**inputs, g=g, beta=beta)
        return {"g": g, "beta": beta}

    def theirs(graph: Graph) -> dict[str, Any]:
        soft = graph.apply("ggml_softplus", graph.apply("ggml_add", inputs["alpha"], inputs["dt"]))
        return {
            "g": graph.apply("ggml_mul", soft, inputs["a"]),
            "beta": graph.apply("ggml_sigmoid", inputs["b"]),
        }

    def reference(**i: Any) -> Arrays:
        return dict(zip(("g", "beta"), gates_ref(**i), strict=True))

    return Run(inputs, ours, reference, theirs, 16 * g.size)


@case("delta_gates, gradient", "small", gates_grad, bound=1e-6, llama=NO_GRADIENT,
      shape="1024 x 16")  # fmt: skip
def _gates_grad(size: str) -> Run:
    of = _gate_inputs(size)
    dg, dbeta = (normal(5 + i, *of["b"].shape) for i in range(2))
    dalpha, db = (np.empty_like(dg) for _ in range(2))

    def ours() -> Arrays:
        gates_grad(dg, dbeta, of["alpha"], of["b"], a=of["a"], dt=of["dt"], dalpha=dalpha, db=db)
        return {"dalpha": dalpha, "db": db}

    def reference(dg: np.ndarray, dbeta: np.ndarray, **i: Any) -> Arrays:
        found = gates_grad_ref(np.stack([dg, dbeta]), **i)
        return dict(zip(("dalpha", "db"), found, strict=True))

    return Run({"dg": dg, "dbeta": dbeta, **of}, ours, reference, None, 24 * dg.size)


DELTA = {"one": (1, 2, 2, 8), "odd": (37, 2, 4, 12), "large": (1024, 4, 4, 128)}


def _delta_inputs(size: str) -> dict[str, Any]:
    n, groups, heads, d = DELTA[size]
    q, k = (normal(i, n, groups, d) for i in range(2))
    q, k = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (q, k))
    rng = np.random.default_rng(4)
    return {
        "q": q,
        "k": k,
        "v": normal(2, n, heads, d),
        "g": -rng.uniform(0.01, 1, (n, heads)).astype(np.float32),
        "beta": rng.uniform(0.1, 0.9, (n, heads)).astype(np.float32),
        "offsets": _whole(n),
        "scale": float(1 / np.sqrt(d)),
    }


@case("delta_net", "attention", delta_net, bound=4e-6, llama="ggml_gated_delta_net", unit="GFlop/s",
      shape="1024 tokens, 4 heads of 128", timed_reference=False)  # fmt: skip
def _delta_net(size: str) -> Run:
    inputs = _delta_inputs(size)
    v, k = inputs["v"], inputs["k"]
    o = np.empty_like(v)

    def ours() -> Arrays:
        delta_net(**inputs, o=o)
        return {"o": o}

    def theirs(g: Graph) -> dict[str, Any]:
        arrays = [inputs[name][None] for name in "qkv"]
        gates = [inputs[name][None, :, :, None] for name in ("g", "beta")]
        state = np.zeros((1, v.shape[1], v.shape[2], v.shape[2]), np.float32)
        return {"o": g.apply("ggml_gated_delta_net", *arrays, *gates, state, C.c_int64(1))}

    def cut(found: Arrays) -> Arrays:
        return {"o": found["o"].reshape(-1)[: v.size]}

    work = 7 * v.size * k.shape[2]
    return Run(inputs, ours, lambda **i: {"o": delta_net_ref(**i)}, theirs, work, their_seen=cut)


@case("delta_net, gradient", "attention", delta_net_grad, bound=4e-6, llama=NO_GRADIENT,
      unit="GFlop/s", shape="1024 tokens, 4 heads of 128", timed_reference=False)  # fmt: skip
def _delta_net_grad(size: str) -> Run:
    inputs = _delta_inputs(size)
    do = normal(9, *inputs["v"].shape)
    names = ("q", "k", "v", "g", "beta")
    out = {f"d{name}": np.empty_like(inputs[name]) for name in names}

    def ours() -> Arrays:
        delta_net_grad(do, **inputs, **out)
        return out

    def reference(do: np.ndarray, **i: Any) -> Arrays:
        return {f"d{name}": x for name, x in delta_net_grad_ref(do, **i).items()}

    work = 28 * do.size * inputs["k"].shape[2]
    return Run({"do": do, **inputs}, ours, reference, None, work)


OUT_GATE = {"one": (1, 4, 32), "odd": (37, 3, 33), "large": (1024, 8, 256)}


@case("out_gate", "small", out_gate, bound=1e-6, llama="ggml_sigmoid, ggml_mul",
      shape="1024 x 8 x 256")  # fmt: skip
def _out_gate(size: str) -> Run:
    n, h, d = OUT_GATE[size]
    x, qz = normal(1, n, h, d), normal(2, n, h, 2, d)
    y = np.empty_like(x)

    def ours() -> Arrays:
        out_gate(x, qz, y)
        return {"y": y}

    def theirs(g: Graph) -> dict[str, Any]:
        z = np.ascontiguousarray(qz[:, :, 1])
        return {"y": g.apply("ggml_mul", x, g.apply("ggml_sigmoid", z))}

    inputs = {"x": x, "qz": qz}
    return Run(inputs, ours, lambda **i: {"y": out_gate_ref(**i)}, theirs, 12 * x.size)


@case("out_gate, gradient", "small", out_gate_grad, bound=1e-6, llama=NO_GRADIENT,
      shape="1024 x 8 x 256")  # fmt: skip
def _out_gate_grad(size: str) -> Run:
    n, h, d = OUT_GATE[size]
    dy, x, qz = normal(3, n, h, d), normal(1, n, h, d), normal(2, n, h, 2, d)
    dx, dqz = np.empty_like(x), np.zeros_like(qz)

    def ours() -> Arrays:
        np.copyto(dx, dy)
        out_gate_grad(dx, x, qz, dqz)
        return {"dx": dx, "dqz": dqz}

    def reference(**i: Any) -> Arrays:
        return dict(zip(("dx", "dqz"), out_gate_grad_ref(**i), strict=True))

    return Run({"dy": dy, "x": x, "qz": qz}, ours, reference, None, 28 * x.size)
