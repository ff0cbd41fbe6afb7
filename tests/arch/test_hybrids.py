"""Metadata of models with few attention blocks, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
import nbllama.peek
from examples.toy_archs import MODELS, random_adapter
from nbllama.arch import DeltaNet, Hparams
from nbllama.data.batch import Batch
from nbllama.errors import GGUFError, UsageError
from nbllama.model.activations import set_bytes
from nbllama.model.passes import layout
from nbllama.model.reference import ReferenceModel
from nbllama.peek.names import MIXERS
from tests.differences import compare

LFM2, QWEN35 = "lfm2, 350M to 2.6B", "qwen35, 0.8B and 2B"
GEMMA4 = "gemma4, E2B and E4B"
IDLE, SHARED = "qwen35, with extra prediction blocks", "qwen35, 4B to 27B (heads share keys)"


def made(folder: Path, name: str, **keys: Any) -> Hparams:
    thin = MODELS[name]
    thin.make(folder / "m.gguf", keys=thin.options.get("keys", {}) | keys)
    return nbllama.load_model(folder / "m.gguf").hp


def refused(folder: Path, name: str, **keys: Any) -> str:
    with pytest.raises(GGUFError) as caught:
        made(folder, name, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_blocks_by_their_heads_of_keys(tmp_path: Path) -> None:
    hp = made(tmp_path, LFM2)
    assert [hp.mixer_at(i) for i in range(4)] == ["conv", "attention"] * 2
    assert (hp.attention_layers, hp.n_head_kv, hp.conv_taps) == ([1, 3], 2, 3)
    assert hp.window == 0
    hp = made(tmp_path, "lfm2, with a window")
    assert [hp.window_at(i) for i in range(3)] == [20, 20, 20]


def test_blocks_by_their_place(tmp_path: Path) -> None:
    hp = made(tmp_path, QWEN35)
    assert hp.attention_layers == [3] and hp.attn_gate
    assert hp.delta == DeltaNet(4, 4, 16, 4) and hp.delta.n_qkv == 192
    MODELS[QWEN35].make(tmp_path / "m.gguf", keys={"attention.recurrent_layers": [True] * 4})
    with pytest.raises(GGUFError, match="4 values for 5 layers"):
        nbllama.load_model(tmp_path / "m.gguf")


def test_blocks_that_predict_further_tokens_are_left_alone(tmp_path: Path) -> None:
    hp = made(tmp_path, IDLE)
    assert (hp.n_layer, hp.next_blocks) == (3, 1)
    assert hp.warnings == ("1 block that predicts a later token is not used",)


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        (LFM2, "attention.head_count_kv", [0] * 4, "no block has attention"),
        (LFM2, "attention.head_count_kv", [0, 2], "2 values for 4 layers"),
        (LFM2, "attention.head_count_kv", [0, 2, 0, 4], "differs between attention blocks"),
        (LFM2, "shortconv.l_cache", 1, "1, but must be from 2 to "),
        (QWEN35, "ssm.inner_size", 65, "4 heads of size 16 require 64"),
        (QWEN35, "ssm.group_count", 3, "3 does not divide 4"),
        (QWEN35, "rope.dimension_sections", [2, 1, 1, 2], "do not cover 6 pairs"),
        (QWEN35, "full_attention_interval", 9, "no block has attention"),
        (IDLE, "nextn_predict_layers", 4, "4, but must be from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, key: str, value: object, said: str, tmp_path: Path
) -> None:
    line = refused(tmp_path, name, **{key: value})
    assert said in line and f".{key}'" in line


@pytest.mark.parametrize("arch", ["gemma3n", "qwen3next", "falcon-h1"])
def test_neighbours_are_refused_by_name(arch: str, tmp_path: Path) -> None:
    from nbllama.gguf_io import ValueType, write_gguf

    write_gguf(tmp_path / "m.gguf", [("general.architecture", arch, ValueType.STRING)], [])
    with pytest.raises(GGUFError, match=f"'{arch}'.* not supported; supported: llama, "):
        nbllama.load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", [LFM2, QWEN35])
def test_memory_of_a_step_grows_with_its_length(name: str, tmp_path: Path) -> None:
    made(tmp_path, name)
    model = nbllama.load_model(tmp_path / "m.gguf")
    sizes = [set_bytes(layout(model, None, n)) for n in (1024, 8192)]
    assert sizes[1] == pytest.approx(8 * sizes[0], rel=1e-3)


def test_peft(tmp_path: Path) -> None:
    """Names of Hugging Face's modules; refused where heads have another order there."""
    made(tmp_path, QWEN35)
    model = nbllama.load_model(tmp_path / "m.gguf")
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(f"{tmp_path}/peft/", adapter, model)
    again = nbllama.load_adapter(f"{tmp_path}/peft/", model)
    assert again.parameters().keys() == adapter.parameters().keys()
    made(tmp_path, SHARED)
    model = nbllama.load_model(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="differently from this model's GGUF file"):
        nbllama.save_adapter(f"{tmp_path}/other/", random_adapter(model, norms=False), model)


def test_nodes_are_those_of_the_reference(tmp_path: Path) -> None:
    """All names of peek that only some models have, compared with the float64 values."""
    compared = set()
    tokens = np.random.default_rng(2).integers(3, 288, 12).astype(np.int32)
    batch = Batch.from_rows([(tokens, np.full(12, -1, np.int32))])
    for name in (LFM2, QWEN35, GEMMA4):
        made(tmp_path, name)
        model = nbllama.load_model(tmp_path / "m.gguf")
        with nbllama.peek.watch(model, "*") as seen:
            nbllama.logits(model, tokens)
        wanted: dict[str, np.ndarray] = {}
        ReferenceModel(model).logits(batch, {}, 0.0, seen=wanted.__setitem__)
        for node, x in wanted.items():
            if node in seen and not node.startswith("kq-"):
                compare(f"{name}, {node}", seen[node].reshape(x.shape), x, 2e-5)
                compared.add(node.rpartition("-")[0])
    assert compared >= {node.name for node in MIXERS}
