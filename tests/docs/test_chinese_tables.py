"""The scripts that make the tables of docs/chinese-base-models.md."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.toy_models import make_llama
from tests.conftest import ROOT


def test_tokens_are_counted(tmp_path: Path) -> None:
    for kind in ("spm", "bpe"):
        make_llama(tmp_path / f"{kind}.gguf", tokenizer=kind)
    text = tmp_path / "text.txt"
    text.write_text("the 天", encoding="utf-8")
    script = ROOT / "scripts" / "tools" / "count_tokens.py"
    words = [sys.executable, script, text, tmp_path / "spm.gguf", tmp_path / "bpe.gguf"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "5 characters, 7 bytes"
    # " the", " ", three bytes; and "the", " ", three bytes
    assert lines[4:] == [
        "| `spm.gguf` | SentencePiece | 320 | 5 | 1.00 | 3 |",
        "| `bpe.gguf` | BPE `gpt-2` | 320 | 5 | 1.00 | 3 |",
    ]


def test_more_cores_by_amdahls_law() -> None:
    spec = importlib.util.spec_from_file_location(
        "chinese_forecast", ROOT / "scripts" / "tools" / "chinese_forecast.py"
    )
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert [script.on(n, 100.0, 55.0) for n in (1, 2, 10)] == pytest.approx([100, 55, 19])
    assert script.on(8, 100.0, 49.0) == 12.5  # no share is negative
