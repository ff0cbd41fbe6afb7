"""A command of the old tool, with the program's name changed, on models that it could not train."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import decode_to_f32, make_llama
from nbllama.adapter.file import load_adapter
from nbllama.finetune import main
from nbllama.generation.session import Session
from nbllama.model.passes import load_model
from tests.conftest import GOLDEN
from tests.oracle.model import LlamaModel
from tests.train.toy_runs import file_bits, log_rows, toy_text

WIDE = {"n_embd": 256, "n_head": 4, "n_ff": 256}  # whole blocks of every type
MODELS: dict[str, dict[str, Any]] = {
    "grouped heads": {"n_head": 4, "n_head_kv": 1},
    "tied": {"tied": True},
    "F16": {"types": "F16"},
    "BF16": {"types": "BF16"},
    "Q2_K": {"types": "Q2_K", **WIDE},
    "IQ4_XS": {"types": "IQ4_XS", **WIDE},
}


def command(model: str, text: str, iterations: int, ctx: int) -> list[str]:
    """As in the old tool's README and in existing scripts."""
    return [
        "--model-base", model, "--checkpoint-in", "chk-lora-shakespeare-LATEST.gguf",
        "--checkpoint-out", "chk-lora-shakespeare-ITERATION.gguf",
        "--lora-out", "lora-shakespeare-ITERATION.gguf", "--train-data", text,
        "--save-every", "10", "--threads", "6", "--adam-iter", str(iterations), "--batch", "4",
        "--ctx", str(ctx), "--use-checkpointing", "--lora-r", "4", "--lora-alpha", "4",
        "--rank-wo", "4", "--rank_ffn_down", "4", "--use-flash", "--no-separate-with-eos",
        "--sample-start", "the", "--include-sample-start", "--warmup", "5", "--seed", "1",
    ]  # fmt: skip


def trained(folder: Path, iterations: int) -> list[float]:
    """Losses of the run whose files lie in `folder`, in the order of iterations."""
    rows = log_rows(folder / "run.jsonl")
    assert [row["iter"] for row in rows] == list(range(1, iterations + 1))
    losses = [row["loss"] for row in rows]
    assert all(math.isfinite(loss) for loss in losses)
    return losses


def moved_as_in_llama_cpp(path: Path, adapter: Path, within: float = 0.1) -> None:
    """The adapter changes llama.cpp's answer like ours: the same direction and size."""
    model = load_model(path)
    tokens = model.tokenizer.encode("the hen and the rat eat on thin reed")
    with LlamaModel(path) as there:
        theirs = there.logits(tokens, [(str(adapter), 1.0)])[-1] - there.logits(tokens)[-1]
    trained = load_adapter(adapter, model.hp, model.shapes)
    ours = Session(model, trained, 64).feed(tokens) - Session(model, None, 64).feed(tokens)
    assert np.abs(ours).max() > 1e-2
    # llama.cpp rounds activations to 8 bits for quantised weights; with few layers and small
    # numbers, the effect is a few per cent.
    assert np.linalg.norm(ours - theirs) < within * np.linalg.norm(ours)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_today(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "model.gguf", **MODELS[name])
    toy_text(tmp_path / "text.txt", 600)
    args = [*command("model.gguf", "text.txt", 20, 16), "--adam-alpha", "1e-2"]
    assert main([*args, "--log", "run.jsonl"]) == 0
    losses = trained(tmp_path, 20)
    # A random model has learned nothing, so all of these have much to learn.
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), losses
    files = {"chk-lora-shakespeare", "lora-shakespeare"}
    for end in ("10", "20", "LATEST"):
        assert all((tmp_path / f"{file}-{end}.gguf").is_file() for file in files)
    latest = tmp_path / "lora-shakespeare-LATEST.gguf"
    assert ("output.weight.lora_a" in file_bits(latest)) == (name != "tied")
    moved_as_in_llama_cpp(tmp_path / "model.gguf", latest)


@pytest.mark.slow
def test_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> None:
    """Grouped heads, tied embeddings and a BPE vocabulary at once, on the old example's text."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "shakespeare.txt", tmp_path)
    args = command(str(demo_model), "shakespeare.txt", 10, 64)
    args[args.index("the")] = "\n\n"
    assert main([*args, "--log", "run.jsonl"]) == 0
    losses = trained(tmp_path, 10)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    # On 30 layers llama.cpp's 8-bit activations move its answer by a third of what ten iterations
    # do, so the two are compared on the same weights in float32.
    decode_to_f32(demo_model, tmp_path / "f32.gguf")
    latest = tmp_path / "lora-shakespeare-LATEST.gguf"
    moved_as_in_llama_cpp(tmp_path / "f32.gguf", latest, 1e-3)
