"""Activation, soft-cap, dropout, and the layouts of rows for products: elementwise operations."""

from __future__ import annotations

import ctypes as C
from functools import partial
from typing import Any

import numpy as np

from nbllama.ops.activation import gated, gated_grad, gated_grad_ref, gated_ref
from nbllama.ops.dropout import add_dropped, dropout_for, dropped, keep_ref
from nbllama.ops.linear.int8_rows import int8_rows, int8_rows_ref
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.ops.softcap import soft_cap, soft_cap_grad, soft_cap_grad_ref, soft_cap_ref
from tests.kernels.case import Arrays, Run, Theirs, case, normal
from tests.kernels.panels import to_panels
from tests.kernels.tokens import NORM
from tests.oracle import Graph
from tests.oracle.lib import function

GATED = {"one": (1, 96), "odd": (37, 301), "large": (1024, 1536)}


def _gated(size: str, gelu: bool) -> Run:
    gate, up = 3 * normal(1, *GATED[size]), 3 * normal(2, *GATED[size])
    out = np.empty_like(gate)

    def ours() -> Arrays:
        gated(gate, up, out, gelu=gelu)
        return {"out": out}

    op = "ggml_geglu_split" if gelu else "ggml_swiglu_split"
    return Run(
        {"gate": gate, "up": up},
        ours,
        lambda gate, up: {"out": gated_ref(gate, up, gelu)},
        lambda g: {"out": g.apply(op, gate, up)},
        12 * out.size,
    )


def _gated_grad(size: str, gelu: bool) -> Run:
    gate, up, dout = (3 * normal(i, *GATED[size]) for i in range(3))
    dgate, dup = np.empty_like(gate), np.empty_like(up)

    def ours() -> Arrays:
        np.copyto(dgate, gate)
        np.copyto(dup, up)
        gated_grad(dout, dgate, dup, gelu=gelu)
        return {"dgate": dgate, "dup": dup}

    def reference(dout: np.ndarray, gate: np.ndarray, up: np.ndarray) -> Arrays:
        return dict(zip(("dgate", "dup"), gated_grad_ref(dout, gate, up, gelu), strict=True))

    def theirs(g: Graph) -> dict[str, Any]:
        by_gate = g.apply("ggml_silu_back", g.apply("ggml_mul", dout, up), gate)
        return {"dgate": by_gate, "dup": g.apply("ggml_mul", g.apply("ggml_silu", gate), dout)}

    inputs = {"dout": dout, "gate": gate, "up": up}
    return Run(inputs, ours, reference, None if gelu else theirs, 20 * gate.size)


case("swiglu", "small", gated, bound=1e-6, llama="ggml_swiglu_split", shape="1024 x 1536")(
    partial(_gated, gelu=False)
)
# ggml looks gelu up in a float16 table: 11 bits
case("geglu", "small", gated, bound=4e-6, llama="ggml_geglu_split", llama_bound=1e-3,
     shape="1024 x 1536")(partial(_gated, gelu=True))  # fmt: skip
case("swiglu, gradient", "small", gated_grad, bound=1e-6, llama="ggml_mul (2), ggml_silu_back, "
     "ggml_silu", shape="1024 x 1536")(partial(_gated_grad, gelu=False))  # fmt: skip
case("geglu, gradient", "small", gated_grad, bound=4e-6, shape="1024 x 1536",
     llama="none: ggml has no gradient for gelu")(partial(_gated_grad, gelu=True))  # fmt: skip

CAPPED = {"one": (1, 64), "odd": (37, 101), "large": (128, 49152)}


@case("soft_cap", "small", soft_cap, bound=2e-6, llama="ggml_scale, ggml_tanh, ggml_scale",
      shape="128 x 49152")  # fmt: skip
def _soft_cap(size: str) -> Run:
    z = 20 * normal(1, *CAPPED[size])
    y = np.empty_like(z)

    def ours() -> Arrays:
        np.copyto(y, z)
        soft_cap(y, 30.0)
        return {"y": y}

    def theirs(g: Graph) -> dict[str, Any]:
        return {
            "y": g.apply("ggml_scale", g.apply("ggml_tanh", g.apply("ggml_scale", z, 1 / 30)), 30.0)
        }

    inputs = {"z": z, "cap": 30.0}
    return Run(inputs, ours, lambda **i: {"y": soft_cap_ref(**i)}, theirs, 8 * z.size)


@case("soft_cap, gradient", "small", soft_cap_grad, bound=2e-6, shape="128 x 49152",
      llama="none: ggml has no gradient for tanh")  # fmt: skip
def _soft_cap_grad(size: str) -> Run:
    z, dy = 20 * normal(1, *CAPPED[size]), normal(2, *CAPPED[size])
    y, dz = z.copy(), np.empty_like(z)
    soft_cap(y, 30.0)

    def ours() -> Arrays:
        np.copyto(dz, dy)
        soft_cap_grad(dz, y, 30.0)
        return {"dz": dz}

    inputs = {"dy": dy, "z": z, "cap": 30.0}
    return Run(inputs, ours, lambda **i: {"dz": soft_cap_grad_ref(**i)}, None, 12 * z.size)


NO_DROPOUT = "none: llama.cpp has no dropout"
MASK = dropout_for(0.3, 2**62 + 1, 7, 5).at(11, 3)


@case("dropout", "small", dropped, bound=3e-7, llama=NO_DROPOUT, shape="1024 x 576")
def _dropped(size: str) -> Run:
    x = normal(1, *NORM[size])
    memory = np.empty(x.size, np.float32)
    return Run(
        {"x": x},
        lambda: {"x": dropped(x, MASK, memory)},
        lambda x: {"x": x * keep_ref(MASK, *x.shape)},
        None,
        8 * x.size,
    )


@case("dropout, gradient through A", "small", add_dropped, bound=2e-6, llama=NO_DROPOUT,
      shape="1024 x 576, rank 4")  # fmt: skip
def _add_dropped(size: str) -> Run:
    n, width = NORM[size]
    dh, a, start = normal(1, n, 4), normal(2, 4, width), normal(3, n, width)
    panels, dx = to_panels(dh), np.empty_like(start)

    def ours() -> Arrays:
        np.copyto(dx, start)
        add_dropped(panels, a, MASK, dx)
        return {"dx": dx}

    def reference(dh: np.ndarray, a: np.ndarray, dx: np.ndarray) -> Arrays:
        return {"dx": dx + dh @ a * keep_ref(MASK, n, width).astype(dx.dtype)}

    return Run({"dh": dh, "a": a, "dx": start}, ours, reference, None, 8 * dx.size)


@case("pack", "small", pack, bound=0, shape="1024 x 576",
      llama="none: llama.cpp's products read rows in place")  # fmt: skip
def _pack(size: str) -> Run:
    x = normal(1, *NORM[size])
    memory = np.empty(panel_floats(*x.shape), np.float32)
    return Run(
        {"x": x},
        lambda: {"panels": pack(x, memory)},
        lambda x: {"panels": to_panels(x, x.shape[1])},
        None,
        8 * x.size,
    )


_int8_of = {  # block: llama.cpp's function, its block as a numpy dtype
    32: ("quantize_row_q8_0", np.dtype([("d", "<f2"), ("q", "i1", 32)])),
    256: ("quantize_row_q8_K", np.dtype([("d", "<f4"), ("q", "i1", 256), ("sums", "<i2", 16)])),
}


def _int8_rows(size: str, block: int) -> Run:
    n, k = {"one": (1, 256), "odd": (3, 768), "large": (1024, 1536)}[size]
    x = normal(1, n, k)

    def numbers(found: Arrays) -> Arrays:
        blocks = found["q"].reshape(-1, block) * found["d"].astype(np.float32).reshape(-1, 1)
        return {"x": blocks.reshape(x.shape)}

    def theirs(g: Graph) -> Theirs:
        name, layout = _int8_of[block]
        f = function(name, None, C.c_void_p, C.c_void_p, C.c_int64)
        out = np.zeros(x.size // block, layout)
        return Theirs(
            lambda: f(x.ctypes.data, out.ctypes.data, x.size),
            lambda: numbers({"q": out["q"], "d": out["d"]}),
        )

    return Run(
        {"x": x},
        lambda: dict(int8_rows(x, block)._asdict()),
        lambda x: numbers(int8_rows_ref(x.astype(np.float32), block)._asdict()),
        theirs,
        4 * x.size,
        numbers,
    )


for _block, (_function, _) in _int8_of.items():
    case(
        f"int8 rows, blocks of {_block}",
        "small",
        int8_rows,
        bound=0,
        llama=_function,
        # for blocks of 32 ggml keeps the scale in half precision: 2^-11 of the number
        llama_bound=1e-3 if _block == 32 else 1e-6,
        shape="1024 x 1536",
    )(partial(_int8_rows, block=_block))
