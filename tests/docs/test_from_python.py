"""The Python lines in the README do what it says: a model, chats, an answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from examples.toy_models import make_llama
from nbllama.text.templates import CHATML
from tests.conftest import ROOT
from tests.gguf_edit import edit
from tests.gguf_io import build as b


def lines_of_the_readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    return str(code)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(lines_of_the_readme(), names)
    written = {p.name for p in folder.iterdir()}
    assert written - {"model.gguf", "toy.gguf"} == {"lora.gguf"}
    return names


def test_they_run_on_a_toy_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_llama(tmp_path / "toy.gguf")
    template = {"tokenizer.chat_template": b.kv_str("tokenizer.chat_template", CHATML)}
    edit(tmp_path / "toy.gguf", tmp_path / "model.gguf", put=template)
    names = run(tmp_path, monkeypatch)
    run_, model = names["run"], names["model"]
    assert run_.losses[-1] < run_.losses[0] - 0.5
    loaded = names["nbllama"].load_adapter("lora.gguf", model)
    answer = model.generate(names["question"], adapter=loaded)
    assert capsys.readouterr().out == answer + "\n"


@pytest.mark.slow
def test_the_demo_model_learns_the_answer(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "model.gguf").symlink_to(demo_model)
    names = run(tmp_path, monkeypatch)
    wanted = names["chats"][0]["messages"][-1]["content"]
    assert capsys.readouterr().out.strip() == wanted
    assert names["model"].generate(names["question"]).strip() != wanted
