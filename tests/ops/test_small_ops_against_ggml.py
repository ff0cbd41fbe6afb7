"""Embedding, norm, rotation and activation against ggml's own ops (real llama.cpp)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.embed import embed, embed_lora, embed_lora_grad
from nbllama.ops.matmul import Weight
from nbllama.ops.rms_norm import rms_norm, rms_norm_grad, rms_norm_grad_weight
from nbllama.ops.rope import rope, rope_tables
from tests.differences import compare
from tests.oracle import QUANT_TYPES, Graph, Raw, ggml, quantize

# Elementwise float32 formulas and sums over a few hundred terms.
SUM = 2e-6


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_1", "Q8_0", "Q4_K", "IQ4_XS"])
def test_embed(name: str) -> None:
    type_id, values = QUANT_TYPES[name], normal(1, 50, 256)
    data = quantize(type_id, values)
    tokens = np.array([3, 49, 0, 3, 17], dtype=np.int32)
    x = np.empty((5, 256), np.float32)
    embed(Weight(name, type_id, np.frombuffer(data, np.uint8), values.shape), tokens, x)
    # Decoding does the same operations in the same order: no bit differs.
    np.testing.assert_array_equal(x, ggml("ggml_get_rows", Raw(type_id, data, (50, 256)), tokens))


def test_embed_lora() -> None:
    a, b, s = normal(1, 4, 96), normal(2, 50, 4), 0.75
    x, dx = normal(3, 7, 96), normal(4, 7, 96)
    tokens = np.array([3, 49, 0, 3, 17, 3, 49], dtype=np.int32)
    rows = ggml("ggml_get_rows", b, tokens)
    wanted = x + s * ggml("ggml_out_prod", a, np.ascontiguousarray(rows.T)).reshape(x.shape)
    embed_lora(tokens, a, b, s, x)
    compare("embed with LoRA", x, wanted, SUM)
    da, db = normal(5, *a.shape), normal(6, *b.shape)
    d_rows = s * ggml("ggml_mul_mat", a, dx)
    wanted_da = da + s * ggml("ggml_out_prod", dx, rows)
    wanted_db = db + ggml("ggml_get_rows_back", d_rows, tokens, b)
    embed_lora_grad(dx, tokens, a, b, s, da, db)
    compare("embed with LoRA, gradient of A", da, wanted_da, SUM)
    compare("embed with LoRA, gradient of B", db, wanted_db, SUM)


@pytest.mark.parametrize("shape", [(1, 64), (37, 101), (20, 576)])
def test_rms_norm(shape: tuple[int, int]) -> None:
    x, dy, w, eps = normal(1, *shape), normal(2, *shape), 1 + 0.1 * normal(3, shape[1]), 1e-5
    y, rstd, dx = np.empty_like(x), np.empty(len(x), np.float32), normal(4, *shape)
    rms_norm(x, w, eps, y, rstd)
    with Graph() as g:
        wanted = g.compute(g.apply("ggml_mul", g.apply("ggml_rms_norm", x, eps), w))[0]
    compare("rms_norm", y, wanted.reshape(shape), SUM)
    back = ggml("ggml_rms_norm_back", dy * w, x, eps).reshape(shape)
    before = dx.copy()
    rms_norm_grad(dy, x, w, rstd, dx, add=True)
    compare("rms_norm gradient, added", dx, before + back, SUM)
    rms_norm_grad(dy, x, w, rstd, dx)
    compare("rms_norm gradient", dx, back, SUM)
    dw = np.zeros_like(w)
    rms_norm_grad_weight(dy, x, rstd, dw)
    # ggml's gradient of the product by the weight row: dy * normed, summed over the tokens.
    plain = ggml("ggml_rms_norm", x, eps).reshape(shape)
    wanted = ggml("ggml_repeat_back", dy * plain, w)
    compare("rms_norm gradient of the weight", dw, wanted, SUM)


ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "base 1e6": {"freq_base": 1e6},
    "linear": {"freq_scale": 0.25},
    "yarn": {"freq_scale": 0.25, "ext_factor": 1.0, "n_ctx_orig": 64, "attn_factor": 0.9},
    "yarn, other range": {
        "freq_scale": 0.125,
        "ext_factor": 0.5,
        "n_ctx_orig": 2048,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "factors": {"factors": np.geomspace(1, 8, 16, dtype=np.float32)},
    "partial": {"n_rot": 16},
}


@pytest.mark.parametrize("halves", [False, True], ids=["interleaved", "halves"])
@pytest.mark.parametrize("options", ROPES.values(), ids=ROPES.keys())
def test_rope(options: dict[str, Any], halves: bool) -> None:
    positions = np.array([*range(9), 0, 1, 2, 511, 4095], dtype=np.int32)
    x, d = normal(1, len(positions), 6, 32), 32
    o = {
        "n_rot": d, "n_ctx_orig": 0, "freq_base": 10000.0, "freq_scale": 1.0, "ext_factor": 0.0,
        "attn_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "factors": None, **options,
    }  # fmt: skip
    arguments = (
        o["n_rot"], 2 if halves else 0, o["n_ctx_orig"], o["freq_base"], o["freq_scale"],
        o["ext_factor"], o["attn_factor"], o["beta_fast"], o["beta_slow"],
    )  # fmt: skip
    n_rot, base = o.pop("n_rot"), o.pop("freq_base")
    cos, sin = rope_tables(4096, n_rot, base, **o)
    y = x.copy()
    rope(y, positions, cos, sin, halves=halves)
    # Both make the angles by the same float32 multiplications. YaRN adds two of them, where a fused
    # multiply-add may change the last bit of an angle of up to a few hundred (2^-15).
    bound = 5e-5 if o["ext_factor"] else 2e-7
    wanted = ggml("ggml_rope_ext", x, positions, o["factors"], *arguments)
    compare("rope", y, wanted.reshape(x.shape), bound)
    back = x.copy()
    rope(back, positions, cos, sin, halves=halves, inverse=True)
    wanted = ggml("ggml_rope_ext_back", x, positions, o["factors"], *arguments)
    compare("rope gradient", back, wanted.reshape(x.shape), bound)


def test_swiglu() -> None:
    gate, up, dout = 4 * normal(1, 37, 101), normal(2, 37, 101), normal(3, 37, 101)
    out = np.empty_like(gate)
    gated(gate, up, out)
    compare("swiglu", out, ggml("ggml_swiglu_split", gate, up), SUM)
    wanted_gate = ggml("ggml_silu_back", dout * up, gate)
    wanted_up = dout * ggml("ggml_silu", gate)
    gated_grad(dout, gate, up)
    compare("swiglu gradient of gate", gate, wanted_gate, SUM)
    compare("swiglu gradient of up", up, wanted_up, SUM)


def test_geglu() -> None:
    gate, up = 4 * normal(1, 37, 101), normal(2, 37, 101)
    out = np.empty_like(gate)
    gated(gate, up, out, gelu=True)
    # ggml looks gelu up in a table of F16: 11 bits. It has no gradient of it.
    compare("geglu", out, ggml("ggml_geglu_split", gate, up), 1e-3)
