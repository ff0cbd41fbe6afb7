"""Metadata of mixtures of experts besides sizes, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbllama
from examples.toy_archs import MODELS
from nbllama.errors import GGUFError
from tests.arch.test_dense_rows import made

MIXTRAL = "llama, Mixtral (experts)"
QWEN = "qwen3moe, 30B-A3B and 235B-A22B"
ERNIE = "ernie4_5-moe, 21B-A3B and 300B-A47B"
AIR = "glm4moe, 4.5 Air (MTP block ignored)"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (QWEN, {"expert_count": 0}, "key 'qwen3moe.expert_count': 0, but must be from 1 to "),
    (QWEN, {"expert_count": 12}, "'blk.0.ffn_gate_inp.weight': shape (24, 64), expected (12, 64)"),
    (QWEN, {"expert_used_count": 25}, "expert_used_count': 25, but must be from 1 to 24"),
    (QWEN, {"expert_group_count": 4}, "grouped expert selection is not supported"),
    (QWEN, {"expert_shared_feed_forward_length": 8}, "shared experts are not supported for qwen3"),
    (QWEN, {"leading_dense_block_count": 1}, "not supported for qwen3moe"),
    (
        ERNIE,
        {"interleave_moe_layer_step": 2},
        "only models with experts in every block after the dense ones",
    ),
    (
        ERNIE,
        {"leading_dense_block_count": 3},
        "leading_dense_block_count': 3, but must be from 0 to 2",
    ),
    (AIR, {"expert_gating_func": 4}, "expert_gating_func': 4 is not supported"),
]


@pytest.mark.parametrize(("name", "keys", "said"), REFUSED)
def test_refused_in_one_line(name: str, keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError) as caught:
        made(tmp_path, name, keys)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_constants(tmp_path: Path) -> None:
    e = made(tmp_path, QWEN).experts
    assert e is not None and (e.total, e.used, e.n_ff, e.n_ff_shared, e.first) == (24, 5, 40, 0, 0)
    assert (e.gating, e.normed, e.scale, e.kind) == ("softmax", True, 1.0, "silu")
    e = made(tmp_path, AIR).experts
    assert e is not None and (e.gating, e.normed, e.scale, e.first) == ("sigmoid", True, 1.5, 1)
    e = made(tmp_path, AIR, {"expert_gating_func": 1, "expert_weights_norm": False}).experts
    assert e is not None and (e.gating, e.normed) == ("softmax", False)
    e = made(tmp_path, "gpt-oss, 20B and 120B").experts
    assert e is not None and (e.gating, e.kind) == ("chosen", "clamped")
    assert made(tmp_path, "llama, 7B to 30B").experts is None


def test_a_block_for_a_later_token_is_left_alone(tmp_path: Path) -> None:
    hp = made(tmp_path, AIR)
    assert (hp.n_layer, hp.next_blocks) == (3, 1)
    assert hp.warnings == ("1 block that predicts a later token is not used",)


def test_a_key_that_llama_cpp_does_not_read(tmp_path: Path) -> None:
    hp = made(tmp_path, MIXTRAL, {"expert_weights_scale": 2.5})
    assert hp.warnings == ("llama.expert_weights_scale is ignored for llama, as in llama.cpp",)


def test_blocks_without_experts(tmp_path: Path) -> None:
    MODELS[ERNIE].make(tmp_path / "m.gguf")
    model = nbllama.load_model(tmp_path / "m.gguf")
    assert [model.hp.experts_at(i) is None for i in range(3)] == [True, False, False]
    assert "blk.0.ffn_gate.weight" in model.matrices and not model.experts.keys() & {
        "blk.0.ffn_gate_exps.weight"
    }
    assert len(model.block_types(0)) < len(model.block_types(1))
