"""Embedding, norm and rotation: operations on each token alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from nbllama.ops.embed import (
    embed,
    embed_lora,
    embed_lora_grad,
    embed_lora_grad_ref,
    embed_lora_ref,
)
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.rms_norm import (
    rms_norm,
    rms_norm_grad,
    rms_norm_grad_ref,
    rms_norm_grad_weight,
    rms_norm_ref,
)
from nbllama.ops.rope import rope, rope_ref, rope_tables
from tests.kernels.case import Arrays, Run, case, normal
from tests.oracle import QUANT_TYPES, Graph, Raw
from tests.quants.blocks import even_blocks, reference

Q8_0 = QUANT_TYPES["Q8_0"]


@case("embed", "small", embed, bound=0, llama_bound=0, llama="ggml_get_rows",
      shape="1024 of 4096 rows of 576, Q8_0")  # fmt: skip
def _embed(size: str) -> Run:
    n, v, c = {"one": (1, 5, 64), "odd": (37, 101, 96), "large": (1024, 4096, 576)}[size]
    raw = even_blocks(Q8_0, v * c // 32)
    tokens = np.random.default_rng(1).integers(0, v, n).astype(np.int32)
    table, x = Weight("table", Q8_0, raw, (v, c)), np.empty((n, c), np.float32)

    def ours() -> Arrays:
        embed(table, tokens, x)
        return {"x": x}

    return Run(
        {"raw": raw.reshape(v, -1), "tokens": tokens},
        ours,
        lambda raw, tokens: {"x": reference(Q8_0, raw[tokens].reshape(-1)).reshape(n, c)},
        lambda g: {"x": g.apply("ggml_get_rows", Raw(Q8_0, raw.tobytes(), (v, c)), tokens)},
        4 * n * c,
    )


def _pair(size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """tokens, A, B, x or dx."""
    n, c, v, r = {"one": (1, 64, 50, 4), "odd": (37, 101, 20, 3), "large": (1024, 576, 4096, 4)}[
        size
    ]
    tokens = np.random.default_rng(1).integers(0, v, n).astype(np.int32)
    return tokens, normal(2, r, c), normal(3, v, r), normal(4, n, c)


@case("embed, LoRA", "small", embed_lora, bound=1e-6,
      llama="ggml_get_rows, ggml_out_prod, ggml_scale, ggml_add",
      shape="1024 x 576, rank 4")  # fmt: skip
def _embed_lora(size: str) -> Run:
    tokens, a, b, start = _pair(size)
    x, s = np.empty_like(start), 0.75

    def ours() -> Arrays:
        np.copyto(x, start)
        embed_lora(tokens, a, b, scale=s, x=x)
        return {"x": x}

    def theirs(g: Graph) -> dict[str, Any]:
        rows = g.apply("ggml_get_rows", b, tokens)
        added = g.apply("ggml_out_prod", a, g.apply("ggml_transpose", rows))
        return {"x": g.apply("ggml_add", start, g.apply("ggml_scale", added, s))}

    return Run(
        {"x": start, "tokens": tokens, "a": a, "b": b, "scale": s},
        ours,
        lambda **i: {"x": embed_lora_ref(**i)},
        theirs,
        8 * x.size,
    )


@case("embed, LoRA gradient", "small", embed_lora_grad, bound=3e-6,
      llama="ggml_mul_mat, ggml_out_prod, ggml_get_rows_back",
      shape="1024 x 576, rank 4")  # fmt: skip
def _embed_lora_grad(size: str) -> Run:
    tokens, a, b, dx = _pair(size)
    da, db, s = np.empty_like(a), np.empty_like(b), 0.75

    def ours() -> Arrays:
        da[...], db[...] = 0, 0
        embed_lora_grad(dx, tokens, a, b, scale=s, da=da, db=db)
        return {"da": da, "db": db}

    def theirs(g: Graph) -> dict[str, Any]:
        rows = g.apply("ggml_scale", g.apply("ggml_get_rows", b, tokens), s)
        d_rows = g.apply("ggml_scale", g.apply("ggml_mul_mat", a, dx), s)
        return {
            "da": g.apply("ggml_out_prod", dx, rows),
            "db": g.apply("ggml_get_rows_back", d_rows, tokens, b),
        }

    return Run(
        {"dx": dx, "tokens": tokens, "a": a, "b": b, "scale": s},
        ours,
        lambda **i: dict(zip(("da", "db"), embed_lora_grad_ref(**i), strict=True)),
        theirs,
        4 * dx.size,
    )


NORM = {"one": (1, 64), "odd": (37, 101), "large": (1024, 576)}


def _norm(size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, w, dy."""
    n, c = NORM[size]
    return normal(1, n, c), 1 + normal(2, c) / 10, normal(3, n, c)


@case("rms_norm", "small", rms_norm, bound=1e-6, llama="ggml_rms_norm, ggml_mul",
      shape="1024 x 576")  # fmt: skip
def _rms_norm(size: str) -> Run:
    x, w, _ = _norm(size)
    y, rstd = np.empty_like(x), np.empty(len(x), np.float32)

    def ours() -> Arrays:
        rms_norm(x, w, 1e-5, y=y, rstd=rstd)
        return {"y": y}

    return Run(
        {"x": x, "w": w, "eps": 1e-5},
        ours,
        lambda **i: {"y": rms_norm_ref(**i)},
        lambda g: {"y": g.apply("ggml_mul", g.apply("ggml_rms_norm", x, 1e-5), w)},
        8 * x.size,
    )


@case("rms_norm, gradient with respect to x", "small", rms_norm_grad, bound=1e-6,
      llama="ggml_mul, ggml_rms_norm_back", shape="1024 x 576")  # fmt: skip
def _rms_norm_grad(size: str) -> Run:
    x, w, dy = _norm(size)
    rstd, dx = np.empty(len(x), np.float32), np.empty_like(x)
    rms_norm(x, w, 1e-5, y=np.empty_like(x), rstd=rstd)

    def ours() -> Arrays:
        rms_norm_grad(dy, x, w, rstd, dx=dx)
        return {"dx": dx}

    return Run(
        {"dy": dy, "x": x, "w": w, "eps": 1e-5},
        ours,
        lambda **i: {"dx": rms_norm_grad_ref(**i)[0]},
        lambda g: {"dx": g.apply("ggml_rms_norm_back", g.apply("ggml_mul", dy, w), x, 1e-5)},
        12 * x.size,
    )


@case("rms_norm, gradient with respect to w", "small", rms_norm_grad_weight, bound=1e-6,
      llama="ggml_rms_norm, ggml_mul, ggml_repeat_back", shape="1024 x 576")  # fmt: skip
def _rms_norm_grad_weight(size: str) -> Run:
    x, w, dy = _norm(size)
    rstd, dw = np.empty(len(x), np.float32), np.empty_like(w)
    rms_norm(x, w, 1e-5, y=np.empty_like(x), rstd=rstd)

    def ours() -> Arrays:
        dw[:] = 0
        rms_norm_grad_weight(dy, x, rstd, dw)
        return {"dw": dw}

    def theirs(g: Graph) -> dict[str, Any]:
        products = g.apply("ggml_mul", g.apply("ggml_rms_norm", x, 1e-5), dy)
        return {"dw": g.apply("ggml_repeat_back", products, w)}

    return Run(
        {"dy": dy, "x": x, "w": w, "eps": 1e-5},
        ours,
        lambda **i: {"dw": rms_norm_grad_ref(**i)[1]},
        theirs,
        8 * x.size,
    )


def _rope(size: str, halves: bool, inverse: bool) -> Run:
    n, h, d = {"one": (1, 3, 64), "odd": (37, 3, 66), "large": (1024, 9, 64)}[size]
    positions = np.random.default_rng(1).integers(0, 1024, n).astype(np.int32)
    cos, sin = rope_tables(1024, d, 10000.0)
    start = normal(2, n, h, d)
    x = np.empty_like(start)

    def ours() -> Arrays:
        np.copyto(x, start)
        rope(x, positions, cos, sin, halves=halves, inverse=inverse)
        return {"y": x}

    def theirs(g: Graph) -> dict[str, Any]:
        op = "ggml_rope_ext_back" if inverse else "ggml_rope_ext"
        how = (d, 2 if halves else 0, 0, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0)
        return {"y": g.apply(op, start, positions, None, *how)}

    return Run(
        {"x": start, "positions": positions, "cos": cos, "sin": sin},
        ours,
        lambda **i: {"y": rope_ref(**i, halves=halves, inverse=inverse)},
        theirs,
        8 * x.size,
    )


for _halves in (False, True):
    _kind = "halves" if _halves else "neighbours"
    for _inverse in (False, True):
        case(
            f"rope, {_kind}" + (", gradient" if _inverse else ""),
            "small",
            rope,
            bound=3e-7,
            llama="ggml_rope_ext_back" if _inverse else "ggml_rope_ext",
            shape="1024 x 9 x 64",
        )(partial(_rope, halves=_halves, inverse=_inverse))
