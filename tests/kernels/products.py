"""A linear layer with its LoRA pair, and the pair's own thin products.

The large products alone, for each weight type, are in `weights.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.ops.linear.linear import Input, LoraPair, hidden_floats, linear, linear_grad
from nbllama.ops.linear.lora import (
    add_hidden,
    add_outer_packed,
    lora_grad_ref,
    lora_ref,
    outer_product,
    pack_with_hidden,
    thin_product,
)
from nbllama.ops.linear.lora_grad import pack_with_gradients
from nbllama.ops.linear.matmul import Weight, matmul_packed, matmul_ref
from nbllama.ops.linear.panels import panel_floats
from nbllama.quants import QUANTS
from tests.kernels.case import ROUNDED, Arrays, Run, case, normal
from tests.kernels.panels import to_panels, unpacked
from tests.oracle import QUANT_TYPES, Graph, Raw
from tests.quants.blocks import even_blocks, reference

SHAPES = {"one": (1, 64, 48, 4), "odd": (37, 96, 67, 7), "large": (1024, 576, 1536, 4)}
# tokens, n_in, n_out, rank


class Layer:
    """A random weight of a type, for us, for ggml, and decoded by gguf-py."""

    def __init__(self, type_name: str, n_out: int, n_in: int, seed: int = 0) -> None:
        type_id = QUANT_TYPES[type_name]
        blocks = even_blocks(type_id, n_out * n_in // QUANTS[type_id].block_size, seed)
        self.ours = Weight("w", type_id, blocks, (n_out, n_in))
        self.theirs = Raw(type_id, blocks.tobytes(), (n_out, n_in))
        self.decoded = reference(type_id, blocks).reshape(n_out, n_in)


def times(g: Graph, weight: Any, x: Any) -> Any:
    """x Wᵀ in a graph."""
    return g.apply("ggml_mul_mat", weight, x)


def times_back(g: Graph, weight: Any, dy: Any) -> Any:
    """dy W in a graph."""
    return g.apply("ggml_out_prod", weight, g.apply("ggml_transpose", dy))


def scaled(g: Graph, x: Any, scale: float) -> Any:
    return g.apply("ggml_scale", x, float(scale))


def added(g: Graph, a: Any, b: Any) -> Any:
    return g.apply("ggml_add", a, b)


class _Sample:
    """A layer with a pair of one size."""

    def __init__(self, size: str) -> None:
        self.n, self.k, self.n_out, self.rank = SHAPES[size]
        self.w = Layer("Q4_1", self.n_out, self.k)
        self.x, self.dy = normal(1, self.n, self.k), normal(2, self.n, self.n_out)
        # a pair with as large an effect as the weight
        size_of_w = float(self.w.decoded.std())
        self.a = normal(3, self.rank, self.k)
        self.b, self.scale = normal(4, self.n_out, self.rank) * size_of_w, 0.5

    def memory(self, *floats: int) -> tuple[np.ndarray, ...]:
        return tuple(np.empty(max(1, f), np.float32) for f in floats)

    @property
    def inputs(self) -> dict[str, Any]:
        return {"x": self.x, "w": self.w.decoded, "a": self.a, "b": self.b, "scale": self.scale}


@case("linear with LoRA", "products", linear, bound=2e-6, unit="GF/s", llama_bound=ROUNDED,
      llama="ggml_mul_mat (3), ggml_scale, ggml_add",
      shape="1024 tokens, 576 inputs, 1536 outputs, Q4_1, rank 4")  # fmt: skip
def _linear(size: str) -> Run:
    s = _Sample(size)
    pair = LoraPair(s.a, s.b, s.scale, None, None)
    y, hidden = np.empty_like(s.dy), np.empty(hidden_floats(s.n, s.rank), np.float32)
    (panels,) = s.memory(panel_floats(s.n, s.k))

    def ours() -> Arrays:
        linear(s.w.ours, pair, Input(s.x, panels, [(pair, hidden)]), y, hidden=hidden)
        return {"y": y}

    def reference(
        x: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
    ) -> Arrays:
        return {"y": matmul_ref(x, w) + lora_ref(x, a, b, scale)}

    def theirs(g: Graph) -> dict[str, Any]:
        x = g.tensor(s.x)
        h = scaled(g, times(g, s.a, x), s.scale)
        return {"y": added(g, times(g, s.w.theirs, x), times(g, s.b, h))}

    work = 2 * s.n * (s.k * s.n_out + s.rank * (s.k + s.n_out))
    return Run(s.inputs, ours, reference, theirs, work)


@case("linear with LoRA, gradient", "products", linear_grad, bound=2e-6, unit="GF/s",
      llama="ggml_out_prod (6), ggml_mul_mat, ggml_scale (2), ggml_add",
      shape="1024 tokens, 576 inputs, 1536 outputs, Q4_1, rank 4")  # fmt: skip
def _linear_grad(size: str) -> Run:
    s = _Sample(size)
    da, db, dx = np.empty_like(s.a), np.empty_like(s.b), np.empty_like(s.x)
    pair = LoraPair(s.a, s.b, s.scale, da, db)
    panels, y, hidden = s.memory(panel_floats(s.n, s.k), s.n * s.n_out, hidden_floats(s.n, s.rank))
    hp = linear(s.w.ours, pair, Input(s.x, panels), y.reshape(s.dy.shape), hidden=hidden)
    gp, dh = s.memory(panel_floats(s.n, s.n_out), hidden_floats(s.n, s.rank))

    def ours() -> Arrays:
        da[...], db[...] = 0, 0
        linear_grad(s.w.ours, pair, s.dy, s.x, hp=hp, dx=dx, buffers=(gp, dh))
        return {"dx": dx, "da": da, "db": db}

    def reference(
        dy: np.ndarray, x: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
    ) -> Arrays:
        through, da, db = lora_grad_ref(dy, x, a, b, scale=scale)
        return {"dx": dy @ w + through, "da": da, "db": db}

    def theirs(g: Graph) -> dict[str, Any]:
        x, dy = g.tensor(s.x), g.tensor(s.dy)
        h = scaled(g, times(g, s.a, x), s.scale)
        dh = scaled(g, times_back(g, s.b, dy), s.scale)
        return {
            "dx": added(g, times_back(g, s.w.theirs, dy), times_back(g, s.a, dh)),
            "da": g.apply("ggml_out_prod", x, dh),
            "db": g.apply("ggml_out_prod", h, dy),
        }

    work = 2 * s.n * (s.k * s.n_out + 2 * s.rank * (s.k + s.n_out))
    return Run({"dy": s.dy, **s.inputs}, ours, reference, theirs, work)


@case("pack with h = s x Aᵀ", "products", pack_with_hidden, bound=2e-6, unit="GB/s",
      llama="ggml_mul_mat, ggml_scale", shape="1024 x 576, rank 4")  # fmt: skip
def _pack_with_hidden(size: str) -> Run:
    s = _Sample(size)
    panels, hidden = s.memory(panel_floats(s.n, s.k), hidden_floats(s.n, s.rank))

    def ours() -> Arrays:
        _, (h,) = pack_with_hidden(s.x, panels, [(s.a, s.scale, hidden)])
        return {"h": h}

    return Run(
        {"x": s.x, "a": s.a, "scale": s.scale},
        ours,
        lambda x, a, scale: {"h": scale * x @ a.T},
        lambda g: {"h": scaled(g, times(g, s.a, s.x), s.scale)},
        8 * s.x.size,
        lambda found: {"h": unpacked(found["h"], s.n, s.rank)},
    )


@case("dh = s dy B", "products", thin_product, bound=2e-6, unit="GB/s",
      llama="ggml_out_prod, ggml_scale", shape="1024 x 1536, rank 4")  # fmt: skip
def _thin_product(size: str) -> Run:
    s = _Sample(size)
    panels = to_panels(s.dy, s.n_out)
    (memory,) = s.memory(hidden_floats(s.n, s.rank))

    def ours() -> Arrays:
        return {"dh": thin_product(s.b, panels, s.scale, memory, transposed=True)}

    return Run(
        {"dy": s.dy, "b": s.b, "scale": s.scale},
        ours,
        lambda dy, b, scale: {"dh": scale * dy @ b},
        lambda g: {"dh": scaled(g, times_back(g, s.b, s.dy), s.scale)},
        4 * s.dy.size,
        lambda found: {"dh": unpacked(found["dh"], s.n, s.rank)},
    )


@case("dA = dhᵀ x, dB = dyᵀ h", "products", pack_with_gradients, bound=2e-6, unit="GF/s",
      llama="ggml_out_prod (3), ggml_scale",
      shape="1024 tokens, 576 inputs, 1536 outputs, rank 4, with dh and packing dy")  # fmt: skip
def _pair_gradients(size: str) -> Run:
    s = _Sample(size)
    h, b = normal(5, s.n, s.rank), normal(6, s.n_out, s.rank)
    hp, da, db = to_panels(h), np.empty_like(s.a), np.empty_like(s.b)
    memory = s.memory(panel_floats(s.n, s.n_out), hidden_floats(s.n, s.rank))

    def ours() -> Arrays:
        da[...], db[...] = 0, 0
        gp, dhp = pack_with_gradients(
            s.dy, memory[0], b, scale=s.scale, dh_memory=memory[1], x=s.x, hp=hp, da=da, db=db
        )
        return {"da": da, "db": db, "dh": dhp, "dy": gp}

    def theirs(g: Graph) -> dict[str, Any]:
        dh = scaled(g, times_back(g, b, s.dy), s.scale)
        return {
            "da": g.apply("ggml_out_prod", s.x, dh),
            "db": g.apply("ggml_out_prod", h, s.dy),
            "dh": dh,
        }

    def read(found: Arrays) -> Arrays:
        dh = unpacked(found["dh"], s.n, s.rank)
        return {"da": found["da"], "db": found["db"], "dh": dh}

    return Run(
        {"dy": s.dy, "b": b, "scale": s.scale, "x": s.x, "h": h},
        ours,
        lambda dy, b, scale, x, h: {
            "da": (scale * dy @ b).T @ x,
            "db": dy.T @ h,
            "dh": scale * dy @ b,
        },
        theirs,
        2 * s.n * s.rank * (s.k + 2 * s.n_out),
        read,
    )


@case("dB of packed dy", "products", add_outer_packed, bound=2e-6, unit="GF/s",
      llama="ggml_out_prod", shape="1024 x 1536, rank 4")  # fmt: skip
def _outer_packed(size: str) -> Run:
    s = _Sample(size)
    h, db = normal(5, s.n, s.rank), np.empty_like(s.b)
    hp, gp = to_panels(h), to_panels(s.dy, s.n_out)

    def ours() -> Arrays:
        db[...] = 0
        add_outer_packed(gp, hp, db)
        return {"db": db}

    return Run(
        {"dy": s.dy, "h": h},
        ours,
        lambda dy, h: {"db": dy.T @ h},
        lambda g: {"db": g.apply("ggml_out_prod", h, s.dy)},
        2 * s.n * s.rank * s.n_out,
    )


@case("product left packed", "products", matmul_packed, bound=2e-6, unit="GF/s",
      llama_bound=ROUNDED, llama="ggml_mul_mat",
      shape="1024 tokens, 576 inputs, 1536 outputs, Q4_1")  # fmt: skip
def _matmul_packed(size: str) -> Run:
    s = _Sample(size)
    xp, (yp,) = to_panels(s.x, s.k), s.memory(panel_floats(s.n, s.n_out))
    yp = yp.reshape(len(xp), s.n_out, -1)

    def ours() -> Arrays:
        matmul_packed(s.w.ours, xp, yp)
        return {"y": yp}

    return Run(
        {"x": s.x, "w": s.w.decoded},
        ours,
        lambda x, w: {"y": matmul_ref(x, w)},
        lambda g: {"y": times(g, s.w.theirs, s.x)},
        2 * s.n * s.k * s.n_out,
        lambda found: {"y": unpacked(found["y"], s.n, s.n_out)},
    )


@case("hᵀ x", "products", outer_product, bound=2e-6, unit="GF/s", llama="ggml_out_prod",
      shape="1024 x 576, rank 4")  # fmt: skip
def _outer(size: str) -> Run:
    s = _Sample(size)
    h = normal(5, s.n, s.rank)
    hp = to_panels(h)
    return Run(
        {"h": h, "x": s.x},
        lambda: {"da": outer_product(hp, s.x, s.rank)},
        lambda h, x: {"da": h.T @ x},
        lambda g: {"da": g.apply("ggml_out_prod", s.x, h)},
        2 * s.n * s.rank * s.k,
    )


@case("y += h Bᵀ of few tokens", "products", add_hidden, bound=2e-6, unit="GF/s",
      llama="ggml_mul_mat, ggml_add", shape="4 tokens, 1536 outputs, rank 4")  # fmt: skip
def _add_hidden(size: str) -> Run:
    n, n_out, rank = {"one": (1, 48, 4), "odd": (3, 67, 7), "large": (4, 1536, 4)}[size]
    h, b, start = normal(1, n, rank), normal(2, n_out, rank), normal(3, n, n_out)
    hp, y = to_panels(h), np.empty_like(start)

    def ours() -> Arrays:
        np.copyto(y, start)
        add_hidden(hp, b, y)
        return {"y": y}

    return Run(
        {"h": h, "b": b, "y": start},
        ours,
        lambda h, b, y: {"y": y + h @ b.T},
        lambda g: {"y": added(g, g.apply("ggml_mul_mat", b, h), start)},
        2 * n * n_out * rank,
    )
