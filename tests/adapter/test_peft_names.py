"""PEFT folders of architectures whose module names differ from llama's, written and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.adapter.safetensors import read_safetensors
from nbllama.adapter.stored import Base

MLP = {
    "arcee, AFM 4.5B": {"mlp.up_proj", "mlp.down_proj"},
    "glm4, GLM-4-0414 9B and 32B": {"mlp.gate_up_proj", "mlp.down_proj"},
    "starcoder2, 3B to 15B": {"mlp.c_fc", "mlp.c_proj"},
    "phi2, 1, 1.5 and 2": {"mlp.fc1", "mlp.fc2", "self_attn.dense"},
    "olmo2, OLMo 2": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
}


@pytest.mark.parametrize("name", MLP)
def test_modules(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "m.gguf")
    model = nbllama.load_model(tmp_path / "m.gguf")
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(f"{tmp_path}/p/", adapter, model)
    again = nbllama.load_adapter(tmp_path / "p", model)
    for key, p in adapter.parameters().items():
        np.testing.assert_array_equal(again.parameters()[key], p, err_msg=key)
    keys, _ = read_safetensors(tmp_path / "p" / "adapter_model.safetensors")
    found = {".".join(k.split(".")[5:7]) for k in keys if ".layers." in k}
    assert MLP[name] <= found
    assert {m for m in found if m.startswith("mlp.")} == {
        m for m in MLP[name] if m.startswith("mlp.")
    }


@pytest.mark.parametrize(
    ("arch", "turned"),
    [("smollm3", True), ("arcee", True), ("ernie4_5", False), ("glm4", False), ("olmo2", False)],
)
def test_order_of_rows(arch: str, turned: bool) -> None:
    """If Hugging Face's RoPE also rotates neighbours, rows keep their order."""
    assert Base(arch).interleaved is turned
