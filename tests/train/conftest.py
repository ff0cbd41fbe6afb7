"""`python -m nbllama.finetune` on a toy model.

A test that needs a separate process (limits, locale, signals) starts one; the others call
`main` here, which is the program without its start-up.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.toy_models import make_llama
from nbllama.finetune import main
from tests.train.runs import Run
from tests.train.toy_runs import Done, toy_text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a toy model and a text, which is also the current one."""
    make_llama(tmp_path / "toy.gguf")
    toy_text(tmp_path / "text.txt", 300)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the program here; return how it ended."""

    def call(args: list[str]) -> Done:
        capfd.readouterr()
        code = main(args)
        return Done(code, *capfd.readouterr())

    return call
