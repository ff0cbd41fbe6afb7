"""The wider model of scripts/tools/widen_smollm2 has the logits of the original."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from examples.toy_models import decode_to_f32, make_llama
from nbllama.gguf_io import open_gguf
from tests import oracle
from tests.conftest import ROOT


def script() -> ModuleType:
    path = ROOT / "scripts" / "tools" / "widen_smollm2.py"
    spec = importlib.util.spec_from_file_location("widen_smollm2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(path: Path, tokens: list[int]) -> np.ndarray:
    with oracle.LlamaModel(path, n_threads=2) as model:
        return model.logits(tokens)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("n_head_kv", [3, 6])
def test_same_logits(tied: bool, n_head_kv: int, tmp_path: Path) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    make_llama(old, n_embd=96, n_head=6, n_head_kv=n_head_kv, n_ff=64, tied=tied, rms_eps=0.1)
    tokens = np.random.default_rng(1).integers(0, 320, 20).tolist()
    wanted = logits(old, tokens)
    for kind, bound in (("f32", 1e-5), ("f16", 1e-2)):
        assert script().main([str(new), kind, str(old)]) == 0
        with open_gguf(new) as f:
            assert f.tensors["blk.0.attn_q.weight"].shape == (128, 128)
            assert f.tensors["blk.0.attn_k.weight"].shape == (n_head_kv * 4 // 3 * 16, 128)
        error = np.abs(logits(new, tokens) - wanted).max() / np.abs(wanted).max()
        assert error < bound


def test_bad_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    make_llama(old)
    for words, said in (
        ([], "usage: "),
        ([str(new), "q4_k"], "usage: "),
        ([str(new), "f32", str(old)], "cannot be widened by a third"),
        ([str(new), "f32", str(tmp_path / "no.gguf")], "cannot be opened"),
    ):
        assert script().main(words) == 2
        line = capsys.readouterr().err
        assert said in line and len(line.splitlines()) == 1
    assert not new.exists()


@pytest.mark.slow
def test_the_demo_model(demo_model: Path, tmp_path: Path) -> None:
    decode_to_f32(demo_model, tmp_path / "f32.gguf")
    assert script().main([str(tmp_path / "wide.gguf")]) == 0
    tokens = np.random.default_rng(1).integers(0, 49152, 64).tolist()
    wanted = logits(tmp_path / "f32.gguf", tokens)
    error = np.abs(logits(tmp_path / "wide.gguf", tokens) - wanted).max() / np.abs(wanted).max()
    assert error < 1e-4
