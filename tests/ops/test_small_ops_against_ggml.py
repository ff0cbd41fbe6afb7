"""Rotation with every option, and embedding of other types, against ggml's own ops (real
llama.cpp); the plain forms of all ops are in `tests/kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbllama.ops.embed import embed
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.rope import rope, rope_tables
from tests.differences import compare
from tests.oracle import QUANT_TYPES, Raw, ggml, quantize


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
