"""`nbllama.finetune` with `--lora-in` and `--lora-out` in every format, on a toy model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import load_adapter
from nbllama.checkpoint.file import load_checkpoint
from nbllama.finetune import main
from nbllama.lora.pairs import Adapter
from tests.adapter.adapters import LINEARS, model

TEXT = "the hen and the hat are in the inn " * 12
FORMATS = ("x-ITERATION.gguf", "x-ITERATION.bin", "x-ITERATION/")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and a text."""
    monkeypatch.chdir(tmp_path)
    make_llama("toy.gguf")
    Path("text.txt").write_text(TEXT)
    return tmp_path


def train(*words: str, n: int = 1, threads: int = 1) -> int:
    fixed = "--model-base toy.gguf --train-data text.txt --ctx 16 --batch 2 --seed 3 --warmup 1"
    files = ["--checkpoint-in=", "--checkpoint-out=", "--lora-out=", "--save-every", "1"]
    run = ["--threads", str(threads), "--adam-iter", str(n)]
    return main([*fixed.split(), *files, *run, *words])


def read(name: str) -> Adapter:
    return load_adapter(name, *model(Path("toy.gguf")))


def same(a: Adapter, b: Adapter) -> bool:
    left, right = a.parameters(), b.parameters()
    return list(left) == list(right) and all(np.array_equal(left[n], right[n]) for n in left)


def test_all_formats_hold_the_same_run(toy: Path) -> None:
    adapters = []
    for name in FORMATS:
        assert train("--lora-out", name, "--rank-att-norm=0", "--rank-ffn-norm=0",
                     "--rank-out-norm=0", n=2) == 0  # fmt: skip
        last = read(name.replace("ITERATION", "LATEST"))
        assert same(last, read(name.replace("ITERATION", "2")))
        assert not same(last, read(name.replace("ITERATION", "1")))
        adapters.append(last)
    assert same(adapters[0], adapters[1]) and same(adapters[0], adapters[2])
    assert not [n for n in os.listdir() + os.listdir("x-1") if n.startswith(".")]


def test_norms_are_trained_for_a_bin(toy: Path) -> None:
    assert train("--lora-out", "a.bin") == 0
    assert read("a.bin").pairs["blk.1.ffn_norm.weight"].rank == 1
    assert train("--lora-out", "a.gguf") == 0
    assert "blk.1.ffn_norm.weight" not in read("a.gguf").pairs


@pytest.mark.parametrize("name", FORMATS)
def test_start_from_an_adapter(toy: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Ranks, alpha and values come from it; moments start at zero; a checkpoint has priority."""
    words = [f"--rank-{slot.replace('_', '-')}=2" for slot in LINEARS]
    assert train("--lora-r", "4", "--lora-alpha", "6", *words, "--lora-out", name) == 0
    first = name.replace("ITERATION", "1")
    capfd.readouterr()
    assert train("--lora-in", first, "--lora-out", "b.gguf", "--checkpoint-out", "c.gguf") == 0
    assert f"starting from the adapter {first}" in capfd.readouterr().out
    start, after, state = read(first), read("b.gguf"), load_checkpoint("c.gguf")
    assert (after.alpha, after.lora_r, state.iteration) == (6, 4, 1)
    assert list(after.pairs) == list(start.pairs) and not same(start, after)
    for tensor, x in start.parameters().items():
        # one step of AdamW at 1e-3 moves a value by at most the learning rate and the decay of 0.1
        assert abs(after.parameters()[tensor] - x).max() <= 1.001e-3 + 1e-4 * abs(x).max()
        # (1 - beta2) g² after one step from zero, and (1 - beta1) g
        m, v = state.m[tensor], state.v[tensor]
        np.testing.assert_allclose(v, 1e-3 * (m / 0.1) ** 2, rtol=1e-5, atol=1e-30)
    more = ("--lora-in", first, "--checkpoint-in", "c.gguf", "--checkpoint-out", "d.gguf")
    assert train(*more) == 0
    assert f"--lora-in {first} is ignored" in capfd.readouterr().out
    assert load_checkpoint("d.gguf").iteration == 2


def test_what_is_refused_before_anything_is_done(
    toy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("--lora-out", "a.bin") == 0
    make_llama("other.gguf", n_embd=128)
    Path("file").touch()
    capfd.readouterr()
    for words, code, said in (
        (["--lora-in", "none.bin"], 2, "--lora-in none.bin: no such file"),
        (["--lora-in", "a.bin", "--lora-r", "9"], 2, "--lora-r 9: the adapter a.bin has 4"),
        (["--lora-in", "toy.gguf"], 5, "general.type"),
        (["--lora-in", "a.bin", "--model-base", "other.gguf"], 5, "a (320, 64) matrix"),
        (["--lora-out", "x.safetensors"], 2, "folder"),
        (["--lora-out", "f-ITERATION/a/"], 2, "ITERATION must be in the file name"),
        (["--lora-out", "none/below/"], 3, "cannot be written"),
        (["--lora-out", "file/"], 3, "cannot be written"),
    ):
        assert train(*words) == code, words
        err = capfd.readouterr().err
        assert err.splitlines()[-1].startswith("error: ") and said in err


def test_a_folder_is_locked_and_swept(toy: Path) -> None:
    from nbllama.system.run_lock import RunLock

    Path("out").mkdir()
    left = Path("out/.adapter_config.json.0123456789ab.nbllama-tmp")
    left.touch()
    with RunLock("out/adapter_config.json"):
        assert train("--lora-out", "out") == 3
    assert left.exists()
    assert train("--lora-out", "out") == 0
    assert sorted(os.listdir("out")) == ["adapter_config.json", "adapter_model.safetensors"]
