"""The mixes against llama.cpp: counts of types that its loader prints for known models."""

from __future__ import annotations

from collections import Counter

import pytest

from nbllama.errors import UsageError
from nbllama.export.file_types import FILE_TYPES, file_type, fitting, may_change, tensor_types
from nbllama.gguf_io.types import TENSOR_TYPES

# Llama 2 7B (32 blocks, 32 heads, 32 KV heads) and, last, Mistral 7B (8 KV heads).
COUNTS = {
    ("Q2_K", 32): {"Q2_K": 129, "Q3_K": 96, "Q6_K": 1},
    ("Q3_K_S", 32): {"Q3_K": 225, "Q6_K": 1},
    ("Q3_K_M", 32): {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1},
    ("Q3_K_L", 32): {"Q3_K": 129, "Q5_K": 96, "Q6_K": 1},
    ("Q4_K_S", 32): {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1},
    ("Q4_K_M", 32): {"Q4_K": 193, "Q6_K": 33},
    ("Q5_K_S", 32): {"Q5_K": 225, "Q6_K": 1},
    ("Q5_K_M", 32): {"Q5_K": 193, "Q6_K": 33},
    ("Q6_K", 32): {"Q6_K": 226},
    ("Q8_0", 32): {"Q8_0": 226},
    ("Q4_0", 32): {"Q4_0": 225, "Q6_K": 1},
    ("Q5_1", 32): {"Q5_1": 225, "Q6_K": 1},
    ("F16", 32): {"F16": 226},
    ("BF16", 32): {"BF16": 226},
    ("F32", 32): {"F32": 226},
    ("Q2_K", 8): {"Q2_K": 129, "Q3_K": 64, "Q4_K": 32, "Q6_K": 1},
}
LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def shapes(
    n_layer: int, row: int = 4096, row_down: int = 11008, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (32000, row)}
    for i in range(n_layer):
        for name in LINEARS:
            out[f"blk.{i}.{name}.weight"] = (64, row_down if name == "ffn_down" else row)
        out[f"blk.{i}.attn_norm.weight"] = (row,)
        out[f"blk.{i}.attn_q.bias"] = (64,)
    out["output_norm.weight"] = (row,)
    if not tied:
        out["output.weight"] = (32000, row)
    return out


@pytest.mark.parametrize(("mix", "n_head_kv"), COUNTS)
def test_counts_of_known_models(mix: str, n_head_kv: int) -> None:
    types = tensor_types(FILE_TYPES[mix], shapes(32), n_layer=32, n_head=32, n_head_kv=n_head_kv)
    assert Counter(types.values()) == COUNTS[mix, n_head_kv]
    assert types["output.weight"] in ("Q6_K", "Q8_0", "F16", "BF16", "F32")
    assert set(types) == {name for name, shape in shapes(32).items() if len(shape) == 2}


def test_which_blocks_get_more_bits() -> None:
    types = tensor_types(FILE_TYPES["Q4_K_M"], shapes(32), n_layer=32, n_head=32, n_head_kv=32)
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for tensor in ("attn_v", "ffn_down"):
        found = [i for i in range(32) if types[f"blk.{i}.{tensor}.weight"] == "Q6_K"]
        assert found == more
    types = tensor_types(FILE_TYPES["Q3_K_M"], shapes(32), n_layer=32, n_head=32, n_head_kv=32)
    for tensor in ("attn_v", "ffn_down"):
        found = [i for i in range(32) if types[f"blk.{i}.{tensor}.weight"] == "Q5_K"]
        assert found == [0, 1]
    types = tensor_types(FILE_TYPES["Q4_K_S"], shapes(40), n_layer=40, n_head=40, n_head_kv=40)
    assert [i for i in range(40) if types[f"blk.{i}.attn_v.weight"] == "Q5_K"] == [0, 1, 2, 3]
    assert [i for i in range(40) if types[f"blk.{i}.ffn_down.weight"] == "Q5_K"] == [0, 1, 2, 3, 4]


def test_fused_queries_keys_and_values() -> None:
    fused = {"blk.7.attn_qkv.weight": (192, 4096), "blk.7.ffn_up.weight": (128, 4096)}
    found = {
        mix: tensor_types(FILE_TYPES[mix], fused, n_layer=32, n_head=32, n_head_kv=32)
        for mix in FILE_TYPES
    }
    kinds = {mix: types["blk.7.attn_qkv.weight"] for mix, types in found.items()}
    assert kinds == {mix: kind.main for mix, kind in FILE_TYPES.items()} | {
        "Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K",
    }  # fmt: skip
    assert all(types["blk.7.ffn_up.weight"] == FILE_TYPES[mix].main for mix, types in found.items())


def test_the_70b_model_gets_more_bits_for_attn_v() -> None:
    for mix, wanted in (("Q4_K_S", "Q5_K"), ("Q3_K_S", "Q5_K"), ("Q2_K", "Q5_K"), ("Q6_K", "Q6_K")):
        types = tensor_types(FILE_TYPES[mix], shapes(80), n_layer=80, n_head=64, n_head_kv=8)
        assert types["blk.50.attn_v.weight"] == wanted, mix
    types = tensor_types(
        FILE_TYPES["Q4_K_S"], shapes(80), n_layer=80, n_head=64, n_head_kv=64
    )  # 65B
    assert types["blk.50.attn_v.weight"] == "Q4_K"


def test_tied_embeddings_take_the_output_type() -> None:
    types = tensor_types(
        FILE_TYPES["Q4_K_M"], shapes(2, tied=True), n_layer=2, n_head=32, n_head_kv=32
    )
    assert types["token_embd.weight"] == "Q6_K"
    types = tensor_types(FILE_TYPES["Q4_K_M"], shapes(2), n_layer=2, n_head=32, n_head_kv=32)
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_K", "Q6_K")


def test_rows_that_are_not_whole_blocks() -> None:
    """SmolLM2: rows of 576; today's llama.cpp takes Q4_0 for Q2_K and Q3_K."""
    small = shapes(1, row=576, row_down=1536, tied=True)
    for mix, linear, output in (
        *(("Q2_K", "Q4_0", "Q8_0"), ("Q3_K_S", "Q4_0", "Q8_0"), ("Q4_K_S", "Q5_0", "Q8_0")),
        *(("Q5_K_S", "Q5_1", "Q8_0"), ("Q6_K", "Q8_0", "Q8_0"), ("Q4_0", "Q4_0", "Q8_0")),
    ):
        types = tensor_types(FILE_TYPES[mix], small, n_layer=1, n_head=9, n_head_kv=3)
        assert types["blk.0.attn_q.weight"] == linear, mix
        assert types["token_embd.weight"] == output, mix
    assert fitting("Q4_K", 48) == "F16"
    assert fitting("Q8_0", 48) == "F16"
    assert fitting("F32", 48) == "F32"


def test_pure() -> None:
    types = tensor_types(
        FILE_TYPES["Q4_K_M"], shapes(32), n_layer=32, n_head=32, n_head_kv=8, pure=True
    )
    assert set(types.values()) == {"Q4_K"}


def test_which_tensors_may_change() -> None:
    assert may_change("blk.0.attn_q.weight", (4, 4))
    assert not may_change("blk.0.attn_q.weight", (4,))
    assert not may_change("blk.0.attn_q.bias", (4, 4))
    assert not may_change("blk.0.attn_q_norm.weight", (4, 4))


def test_names() -> None:
    assert file_type("q4_k") is FILE_TYPES["Q4_K_M"]
    assert file_type("Q3_k") is FILE_TYPES["Q3_K_M"]
    assert file_type("q8_0").id == 7
    for name in ("q9", "", "iq2_xs", "Q2_K_S", "same"):
        with pytest.raises(UsageError, match="supported: F32 F16"):
            file_type(name)
    assert len({t.id for t in FILE_TYPES.values()}) == len(FILE_TYPES)
    assert {t.main for t in FILE_TYPES.values()} <= {t.name for t in TENSOR_TYPES.values()}
