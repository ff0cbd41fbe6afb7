"""The example of two adapters: trained, mixed, merged, and the same tokens from llama.cpp."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.gguf_io import open_gguf
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("xllamacpp")
    spec = importlib.util.spec_from_file_location("merge_run", ROOT / "examples/merge/run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_step(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of a log, by step, in the order of the prompts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["step"], []).append(row)
    return found


def texts(folder: Path) -> list[str]:
    """Two texts of a few words each, which have none in common."""
    out: list[str] = []
    for name, words in (("one", ["the", "hen", "ate"]), ("two", ["thin", "reed", "on"])):
        rng = np.random.default_rng(len(out))
        path = folder / f"{name}.txt"
        path.write_text(" ".join(rng.choice(words, 300)), encoding="utf-8")
        out.append(str(path))
    return out


@pytest.fixture(scope="module")
def run_on_a_toy(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a whole run, which has succeeded."""
    folder = tmp_path_factory.mktemp("merge")
    make_llama(folder / "toy.gguf", n_layer=1, types="Q8_0")
    words = [
        *texts(folder), "--model", str(folder / "toy.gguf"), "--out", str(folder / "out"),
        "--log", str(folder / "log.jsonl"), "--iterations", "12", "--ctx", "16", "--rate", "0.02",
        "--prompt", "the hen", "rat", "--tokens", "12", "--threads", "1",
    ]  # fmt: skip
    assert example.main(words) == 0
    return words


def test_on_a_toy_model(run_on_a_toy: list[str]) -> None:
    folder = Path(run_on_a_toy[0]).parent
    rows = by_step(folder / "log.jsonl")
    for prompt in range(2):
        said = {step: rows[step][prompt].get("text") for step in rows}
        assert said["mixed"] == said["merged, llama.cpp"]
        assert len({said[step] for step in ("base", "a", "b", "mixed")}) == 4  # each one matters
        assert rows["agreement"][prompt]["same"] == rows["agreement"][prompt]["tokens"] > 0
    with open_gguf(folder / "out" / "merged-f32.gguf") as f:
        assert {t.type_id for t in f.tensors.values()} == {0}


def test_other_tokens_are_told(
    example: ModuleType,
    run_on_a_toy: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Merged at other scales than those of the mix, with the adapters of the previous run."""
    whole = example.merge

    def merge(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(example, "SCALES", (0.8, -0.4))
            whole(*args)

    monkeypatch.setattr(example, "merge", merge)
    monkeypatch.setattr(example, "train", lambda *args: None)
    assert example.main(run_on_a_toy) == 1
    assert capfd.readouterr().err.endswith("llama.cpp and nbllama generated different tokens\n")


def test_what_cannot_work_ends_in_a_line(
    example: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*texts(tmp_path), "--out", str(tmp_path / "out")]
    assert example.main([*words, "--model", str(tmp_path / "no.gguf")]) == 2
    assert "no.gguf" in capfd.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        example.main(["one.txt", "--model", "x"])
    assert "1 texts; pass two" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_on_the_demo_model(example: ModuleType, tmp_path: Path, demo_model: Path) -> None:
    """With the example's texts: each adapter's style is visible in its output."""
    log = tmp_path / "log.jsonl"
    words = ["--model", str(demo_model), "--out", str(tmp_path / "out"), "--log", str(log)]
    assert example.main(words) == 0
    rows = by_step(log)
    assert len(rows["agreement"]) == len(example.PROMPTS)
    assert all(row["same"] == row["tokens"] > 30 for row in rows["agreement"])
    for prompt in range(len(example.PROMPTS)):
        said = {step: rows[step][prompt]["text"] for step in ("base", "a", "b", "mixed")}
        assert "miles" in said["a"] and "miles" not in said["base"] + said["b"]
        assert "spoon" in said["b"] and "spoon" not in said["base"] + said["a"]
        assert said["mixed"] not in (said["base"], said["a"], said["b"])
