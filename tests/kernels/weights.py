"""Every weight type: decoding, the two products of training, one token's product, quantising."""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np
from gguf import quants as numpy_quants

from nbllama.gguf_io.types import TensorType
from nbllama.ops.linear.matmul import matmul, matmul_grad, matmul_ref
from nbllama.ops.linear.matvec import matvec
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.quants import QUANTS, decode
from nbllama.quants.base import find_decoder
from nbllama.quants.encode import QUANTISED, quantise
from tests.kernels.case import ROUNDED, SUM, Arrays, Run, Theirs, case, normal
from tests.kernels.products import Layer, times, times_back
from tests.oracle import Graph, quant
from tests.quants.blocks import ERRORS, even_blocks, reference

SHAPES = {"one": (1, 64, 256), "odd": (33, 37, 768), "large": (512, 576, 1536)}
# tokens, n_out, n_in

# Where ggml rounds activations to less, or not at all.
PRODUCT_BOUND = {"F32": SUM, "F16": 1e-3, "BF16": 1e-2}
# ggml's gradient decodes the weights and rounds nothing, but does not accept 16-bit floats.
NO_GRADIENT = ("F16", "BF16")

SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _decode(size: str, t: TensorType) -> Run:
    n = {"one": 256, "odd": 9 * 256, "large": 576 * 1536}[size] // t.block_size
    raw = even_blocks(t.id, n)
    ours, theirs = (np.empty(n * t.block_size, np.float32) for _ in range(2))
    kernel, their_kernel = find_decoder(t.id), quant.decoder(t.id)

    def run() -> Arrays:
        kernel(raw, 0, n, ours, 0)
        return {"w": ours}

    return Run(
        {"raw": raw},
        run,
        lambda raw: {"w": reference(t.id, raw)},
        lambda g: Theirs(lambda: their_kernel(raw, theirs), lambda: {"w": theirs}),
        ours.size,
    )


def _matmul(size: str, t: TensorType) -> Run:
    n, n_out, n_in = SHAPES[size]
    w, x = Layer(t.name, n_out, n_in), normal(1, n, n_in)
    y, panels = np.empty((n, n_out), np.float32), np.empty(panel_floats(n, n_in), np.float32)

    def ours() -> Arrays:
        matmul(w.ours, pack(x, panels), y)
        return {"y": y}

    return Run(
        {"x": x, "w": w.decoded},
        ours,
        lambda x, w: {"y": matmul_ref(x, w)},
        lambda g: {"y": times(g, w.theirs, x)},
        2 * n * n_out * n_in,
    )


def _matmul_grad(size: str, t: TensorType) -> Run:
    n, n_out, n_in = SHAPES[size]
    w, dy = Layer(t.name, n_out, n_in), normal(1, n, n_out)
    dx, panels = np.empty((n, n_in), np.float32), np.empty(panel_floats(n, n_out), np.float32)

    def ours() -> Arrays:
        matmul_grad(w.ours, pack(dy, panels), dx)
        return {"dx": dx}

    def theirs(g: Graph) -> Arrays:
        return {"dx": times_back(g, w.theirs, dy)}

    return Run(
        {"dy": dy, "w": w.decoded},
        ours,
        lambda dy, w: {"dx": dy @ w},
        None if t.name in NO_GRADIENT else theirs,
        2 * n * n_out * n_in,
    )


def _matvec(size: str, t: TensorType) -> Run:
    n = {"one": 1, "odd": 3, "large": 1}[size]
    _, n_out, n_in = SHAPES[size]
    w, x = Layer(t.name, n_out, n_in), normal(1, n, n_in)
    y = np.empty((n, n_out), np.float32)

    def ours() -> Arrays:
        matvec(w.ours, x, y)
        return {"y": y}

    return Run(
        {"x": x, "w": w.decoded},
        ours,
        lambda x, w: {"y": matmul_ref(x, w)},
        lambda g: {"y": times(g, w.theirs, x)},
        2 * n * n_out * n_in,
    )


def relative_l2(got: np.ndarray, wanted: np.ndarray) -> float:
    """|got - wanted| / |wanted|, both as vectors; NaN is inf."""
    found = float(np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted))
    return found if np.isfinite(found) else float("inf")


def _quantise(size: str, t: TensorType) -> Run:
    n = {"one": 1, "odd": 7, "large": 576}[size]
    rows = normal(5, n, 1536) * np.float32(0.02)

    def weights(raw: np.ndarray) -> Arrays:
        return {"w": decode(t.id, raw, rows.size)}

    def plain(rows: np.ndarray) -> Arrays:
        """gguf-py's quantisation; for types that it does not support, the weights."""
        rows = rows.astype(np.float32)
        if t.name in SEARCHED:
            return {"w": rows.reshape(-1)}
        kind = gguf.GGMLQuantizationType(t.id)
        return weights(numpy_quants.quantize(rows, kind).reshape(-1).view(np.uint8))

    found: dict[str, bytes] = {}
    return Run(
        {"rows": rows},
        lambda: {"raw": quantise(t.id, rows)},
        plain,
        lambda g: Theirs(
            lambda: found.update(raw=quant.quantize(t.id, rows)),
            lambda: weights(np.frombuffer(found["raw"], np.uint8)),
        ),
        rows.size,
        lambda got: weights(got["raw"]),
    )


for _t in QUANTS.values():
    case(f"decode {_t.name}", "decode", decode, bound=0, llama_bound=0, unit="Gweights/s",
         llama="to_float of ggml_get_type_traits", shape="576 x 1536")(
        partial(_decode, t=_t))  # fmt: skip
    case(f"matmul {_t.name}", "matmul", matmul, bound=SUM, unit="GF/s", llama="ggml_mul_mat",
         llama_bound=PRODUCT_BOUND.get(_t.name, ROUNDED),
         shape="512 tokens, 1536 inputs, 576 outputs")(
        partial(_matmul, t=_t))  # fmt: skip
    case(f"matmul {_t.name}, gradient", "matmul gradient", matmul_grad, bound=SUM, unit="GF/s",
         llama="none: ggml_out_prod does not accept 16-bit floats" if _t.name in NO_GRADIENT
         else "ggml_out_prod",
         shape="512 tokens, 576 inputs, 1536 outputs")(
        partial(_matmul_grad, t=_t))  # fmt: skip
    case(f"one token {_t.name}", "one token", matvec, bound=SUM, unit="GF/s", llama="ggml_mul_mat",
         llama_bound=PRODUCT_BOUND.get(_t.name, ROUNDED),
         shape="1 token, 1536 inputs, 576 outputs")(
        partial(_matvec, t=_t))  # fmt: skip

for _t in QUANTS.values():
    if _t.name in QUANTISED:
        _searched = _t.name in SEARCHED
        case(f"quantise {_t.name}", "quantise", quantise, unit="Gweights/s",
             bound=1.1 * ERRORS[_t.name] if _searched else 0, timed_reference=not _searched,
             # searches add up in another order than llama.cpp's, and sometimes the other of two
             # nearly equal candidates wins
             llama="ggml_quantize_chunk", llama_bound=ERRORS[_t.name] if _searched else 0,
             shape="576 x 1536", distance=relative_l2)(
            partial(_quantise, t=_t))  # fmt: skip
