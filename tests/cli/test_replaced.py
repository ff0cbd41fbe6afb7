"""Models, adapters, checkpoints and data: none is replaced by a file of another kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nbllama
from nbllama import convert_lora, export_lora, finetune, quantize
from nbllama.checkpoint.gguf_kind import gguf_kind
from nbllama.errors import OutputError
from tests.export.merge_models import refusal
from tests.train.runs import listing
from tests.train.toy_runs import toy_model, toy_text, words

Capture = pytest.CaptureFixture[str]
SOURCES = {"a model": "toy.gguf", "an adapter": "lora-4.gguf", "a checkpoint": "chk-4.gguf"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, and the checkpoint and the adapter of a run."""
    folder = tmp_path_factory.mktemp("run")
    toy_model(folder)
    toy_text(folder / "text.txt")
    assert finetune.main(words(folder)) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these files, which is also the current folder."""
    for name in (*SOURCES.values(), "text.txt"):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(path: Path) -> Path:
    """The same file without its last tensors, as after an interrupted download."""
    path.write_bytes(path.read_bytes()[:-4000])
    return path


def test_kinds(folder: Path) -> None:
    """Also of a file whose tensors are incomplete."""
    assert {kind: gguf_kind(name) for kind, name in SOURCES.items()} == {k: k for k in SOURCES}
    assert gguf_kind(cut(folder / "toy.gguf")) == "a model"
    assert [gguf_kind(name) for name in ("text.txt", "none.gguf")] == ["", ""]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("toy.gguf", "is a model"), ("chk-4.gguf", "is a checkpoint"),
        ("text.txt", "is not a GGUF file"), ("c.jsonl", "is not a GGUF file"),
        ("old.bin", "is not a .bin adapter"),
    ],
)  # fmt: skip
def test_an_adapter_replaces_only_an_adapter(
    folder: Path, capsys: Capture, name: str, what: str
) -> None:
    shutil.copy("toy.gguf", "old.bin")
    model = nbllama.load_model("toy.gguf")
    adapter = nbllama.load_adapter("lora-4.gguf", model)
    before = listing(folder)
    for save in (adapter.save, lambda path: nbllama.save_adapter(path, adapter, model)):
        with pytest.raises(OutputError, match=f"the existing file {what} and is not replaced"):
            save(name)
    for more in ([], ["-m", folder / "none.gguf"]):  # refused before the model is read
        code, err = refusal(convert_lora.main, ["lora-4.gguf", name, *more], capsys)
        assert code == 3 and f"{name}: the existing file {what} and is not replaced" in err
    assert listing(folder) == before
    cut(folder / "lora-4.gguf")
    assert adapter.save("lora-4.gguf") == adapter.save("lora-4.gguf") == []


@pytest.mark.parametrize("kind", ["an adapter", "a checkpoint"])
@pytest.mark.parametrize("program", ["export_lora", "quantize"])
def test_a_model_replaces_only_a_model(
    folder: Path, capsys: Capture, program: str, kind: str
) -> None:
    shutil.copy(SOURCES[kind], "out.gguf")
    calls: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
        "export_lora": (
            export_lora.main,
            ["-m", "toy.gguf", "-l", "lora-4.gguf", "-o", "out.gguf", "--no-compare"],
        ),
        "quantize": (quantize.main, ["toy.gguf", "out.gguf", "f16"]),
    }
    main, argv = calls[program]
    before = listing(folder)
    code, err = refusal(main, argv, capsys)
    assert code == 3 and f"out.gguf: the existing file is {kind} and is not replaced" in err
    assert listing(folder) == before
    shutil.copy("toy.gguf", "out.gguf")
    assert main(argv) == 0
    assert "out.gguf: the existing model will be replaced\n" in capsys.readouterr().out
