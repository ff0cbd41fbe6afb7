"""The example with the user's own text, on a toy model: every step and its output."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama.errors import UsageError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slqm_run", ROOT / "examples/slqm/run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_tenth_paragraph_is_held_out(example: ModuleType) -> None:
    trained, held_out = example.split("\n\n".join(f"天{i}" for i in range(1, 26)))
    assert held_out == ["天10", "天20"]
    assert trained == [f"天{i}" for i in range(1, 26) if i not in (10, 20)]
    with pytest.raises(UsageError, match="has 9 paragraphs; at least 10"):
        example.split("x\n" * 9)


def test_perplexity_is_that_of_the_tokens(example: ModuleType, tmp_path: Path) -> None:
    """Against the trainer's own loss, in two windows."""
    make_llama(tmp_path / "toy.gguf", n_layer=1)
    model = nbllama.load_model(tmp_path / "toy.gguf")
    ids = model.tokenizer.encode("the hen and the rat " * 30)
    assert example.WINDOW < len(ids) < 2 * example.WINDOW
    total = 0.0
    for part in (ids[: example.WINDOW], ids[example.WINDOW :]):
        tokens = [model.tokenizer.bos_id or 0, *part[:-1]]
        adapter = nbllama.init_adapter(model)
        total += nbllama.loss_and_gradients(model, adapter, tokens, part)[0] * len(part)
    found = example.perplexity(model, None, "the hen and the rat " * 30)
    assert found == pytest.approx(math.exp(total / len(ids)), rel=1e-4)


def test_the_whole_example(example: ModuleType, tmp_path: Path) -> None:
    make_llama(tmp_path / "toy.gguf", n_layer=1)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(["the", "hen", "ate", "thin", "reed"], 30)) for _ in range(20)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    words = [
        str(tmp_path / "text.txt"), "--model", str(tmp_path / "toy.gguf"), "--iterations", "25",
        "--ctx", "32", "--rate", "0.01", "--prompt", "the hen", "--question", "the rat",
        "--out", str(tmp_path / "out"), "--log", str(tmp_path / "log.jsonl"),
    ]  # fmt: skip
    assert example.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == ["data", "before", "train", "after"] + 8 * ["answer"]
    data, before, _, after = rows[:4]
    assert (data["paragraphs"], data["held_out"]) == (20, 2)
    for part in ("perplexity_held_out", "perplexity_trained"):
        assert after[part] < before[part] / 2
    assert [r["scale"] for r in rows[4:]] == 2 * [0.0, 0.5, 1.0, 1.5]
    assert rows[4]["text"] != rows[6]["text"]  # the adapter does something
    assert (tmp_path / "out" / "slqm.gguf").stat().st_size > 0
    assert example.main([str(tmp_path / "none"), "--model", "x"]) == 2
