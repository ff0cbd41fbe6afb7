"""Metadata of today's dense families besides sizes, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from nbllama.arch import Hparams, Rope, Temperature, with_overrides
from nbllama.errors import GGUFError
from nbllama.gguf_io import ValueType, open_gguf, write_gguf
from tests.conftest import ROOT


def made(folder: Path, name: str, keys: dict[str, Any] | None = None, **changes: Any) -> Hparams:
    thin, path = MODELS[name], folder / "m.gguf"
    thin.make(path, keys=thin.options.get("keys", {}) | (keys or {}), **changes)
    return nbllama.load_model(path).hp


def refused(folder: Path, name: str, keys: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(GGUFError) as caught:
        made(folder, name, keys, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_readme_names_every_architecture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = {thin.arch for thin in MODELS.values() if f"`{thin.arch}`" not in text}
    assert not missing


def test_blocks_without_rope(tmp_path: Path) -> None:
    hp = made(tmp_path, "smollm3, 3B (no RoPE in every fourth block)", n_layer=8)
    assert [hp.rope_at(i) is None for i in range(8)] == [False, False, False, True] * 2
    hp = made(tmp_path, "cohere2, 7B and 111B")
    assert [hp.rope_at(i) is None for i in range(5)] == [False, False, False, True, False]
    assert [hp.window_at(i) for i in range(5)] == [20, 20, 20, 0, 20]


def test_cohere2_must_say_its_window(tmp_path: Path) -> None:
    """Without one, which blocks have RoPE would be a guess; llama.cpp demands the key too."""
    line = refused(tmp_path, "cohere2, 7B and 111B", {"attention.sliding_window": 0})
    assert "key 'cohere2.attention.sliding_window': 0, but must be from 1 to " in line


def test_windows_as_flags(tmp_path: Path) -> None:
    name, key = "olmo2, OLMo 3 (windows)", "attention.sliding_window_pattern"
    hp = made(tmp_path, name)
    assert (hp.window, hp.window_period) == (20, 4)
    assert hp.window_rope == Rope(10000.0, 1.0, yarn=False)
    assert made(tmp_path, name, {key: [False] * 5}).window_period == 1
    hp = made(tmp_path, name, {key: [True] * 5})
    assert all(hp.window_at(i) for i in range(5))
    flags = [True, False, False, True, True]
    assert "do not alternate regularly" in refused(tmp_path, name, {key: flags})
    assert "4 values for 5 layers" in refused(tmp_path, name, {key: [True] * 4})


def test_exaone4_has_windows_by_its_depth(tmp_path: Path) -> None:
    hp = made(tmp_path, "exaone4, 1.2B", {"attention.sliding_window": 20})
    assert hp.window == 0 and hp.rope_at(3) is not None


@pytest.mark.parametrize("name", ["olmo2, OLMo 3 (windows)", "cohere2, 7B and 111B"])
def test_blocks_with_a_window_have_the_model_s_base(name: str, tmp_path: Path) -> None:
    """As in llama.cpp, which reads `rope.freq_base_swa` and does not use it there."""
    hp = made(tmp_path, name, {"rope.freq_base_swa": 77.0})
    assert hp.window_rope.freq_base == hp.rope_freq_base == 10000.0
    assert with_overrides(hp, rope_freq_base=500.0).window_rope.freq_base == 500.0


def test_temperature(tmp_path: Path) -> None:
    name = "mistral3, Ministral 3 (YaRN, temperature)"
    of = made(tmp_path, name).temperature
    assert of == Temperature(float(np.float32(0.1)), 16)
    found = of.at(np.array([0, 15, 16, 47, 48], np.int32))
    wanted = 1 + 0.1 * np.log([1, 1, 2, 3, 4])
    np.testing.assert_allclose(found, wanted, rtol=1e-7)
    assert made(tmp_path, name, {"attention.temperature_scale": 0.0}).temperature is None
    assert "must be positive" in refused(tmp_path, name, {"attention.temperature_scale": -1.0})


def test_alpha_stretches_the_base(tmp_path: Path) -> None:
    hp = made(tmp_path, "hunyuan-dense, with rope.scaling.alpha")
    assert hp.rope_freq_base == pytest.approx(10000 * 1000 ** (16 / 14), rel=1e-6)
    said = refused(tmp_path, "hunyuan-dense, 0.5B to 7B", {"expert_count": 2})
    assert "mixture-of-experts" in said


def test_numbers_of_xielu(tmp_path: Path) -> None:
    name = "apertus, 8B and 70B"
    hp = made(tmp_path, name)
    assert [block[1] for block in hp.xielu] == [float(np.float32(0.4)), 25.0]
    assert made(tmp_path, name, {"xielu.beta": 0.5}).xielu[1][2] == 0.5
    assert "3 values for 2 layers" in refused(tmp_path, name, {"xielu.eps": [0.1] * 3})
    nan = float("nan")
    assert "must be finite" in refused(tmp_path, name, {"xielu.eps": [0.1, nan]})


def test_glm_that_sees_is_refused(tmp_path: Path) -> None:
    key, name = "rope.dimension_sections", "glm4, GLM-4-0414 9B and 32B"
    assert made(tmp_path, name, {key: [0, 0, 0, 0]}).n_rot == 8
    said = refused(tmp_path, name, {key: [2, 3, 3, 0]})
    assert f"key 'glm4.{key}': multimodal variants of glm4 are not supported" in said


def test_tensors_of_other_senses_are_left_alone(tmp_path: Path) -> None:
    """As in files of a whole vision model: one line says so, and text is the same."""
    plain, path = tmp_path / "plain.gguf", tmp_path / "m.gguf"
    MODELS["gemma3, without a window"].make(plain)
    with open_gguf(plain) as f:
        kept = [(n, f.data(n).view(np.float32).reshape(t.shape)) for n, t in f.tensors.items()]
        more = [(n, np.ones((3, 5), np.float32)) for n in ("v.blk.0.attn_q.weight", "mm.0")]
        write_gguf(path, list(f.entries()), [*more, *kept])
    model, tokens = nbllama.load_model(path), [5, 44, 3]
    said = "2 image or audio tensors are not used: nbllama trains only on text"
    assert model.hp.warnings == (said,)
    wanted = nbllama.logits(nbllama.load_model(plain), tokens)
    np.testing.assert_array_equal(nbllama.logits(model, tokens), wanted)


def test_other_unknown_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, [("general.architecture", "glm4-moe", ValueType.STRING)], [])
    with pytest.raises(GGUFError, match="'glm4-moe' is not supported"):
        nbllama.load_model(path)
