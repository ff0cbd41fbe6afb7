"""Names of numbered outputs, and the removal of old ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbllama.checkpoint.file import save_checkpoint
from nbllama.checkpoint.names import LATEST, output_name, prune
from nbllama.errors import UsageError
from tests.checkpoint.run_states import make_state


def test_output_names() -> None:
    assert output_name("out/chk-ITERATION.gguf", 30) == "out/chk-30.gguf"
    assert output_name("out/chk-ITERATION.gguf", LATEST) == "out/chk-LATEST.gguf"
    assert output_name("ITERATION-ITERATION", 7) == "7-ITERATION"
    assert output_name("chk.gguf", 7) == "chk.gguf"


def numbered(folder: Path, numbers: list[int]) -> str:
    for n in numbers:
        save_checkpoint(folder / f"chk-{n}.gguf", make_state({"wq": 1}, iteration=n))
    return str(folder / "chk-ITERATION.gguf")


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    pattern = numbered(tmp_path, [8, 9, 10, 100, 11])
    others = ["chk-LATEST.gguf", "chk-08.gguf", "chk-.gguf", "xchk-1.gguf", "chk-1.gguf.old"]
    for name in others:
        (tmp_path / name).write_bytes((tmp_path / "chk-8.gguf").read_bytes())
    assert prune(pattern, 0, 11) == []
    # 100 is not from the past of iteration 11
    removed = [str(tmp_path / f"chk-{n}.gguf") for n in (9, 8)]
    assert prune(pattern, 2, 11) == removed
    assert left(tmp_path) == sorted(others + [f"chk-{n}.gguf" for n in (10, 11, 100)])
    assert prune(pattern, 2, 11) == []


def test_prune_counts_and_removes_only_valid_files(tmp_path: Path) -> None:
    pattern = numbered(tmp_path, [1, 2, 3, 4])
    whole = (tmp_path / "chk-4.gguf").read_bytes()
    (tmp_path / "chk-4.gguf").write_bytes(whole[:-100] + b"\0" * 100)  # moments gone
    (tmp_path / "chk-0.gguf").write_text("notes")
    assert prune(pattern, 2, 4) == [str(tmp_path / "chk-1.gguf")]
    assert left(tmp_path) == [f"chk-{n}.gguf" for n in (0, 2, 3, 4)]


def test_prune_in_the_current_folder_and_without_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(tmp_path, [1, 2])
    monkeypatch.chdir(tmp_path)
    assert prune("chk-LATEST.gguf", 1, 9) == []
    assert prune("chk-ITERATION.gguf", 1, 9) == ["chk-1.gguf"]
    with pytest.raises(UsageError, match="--keep-last"):
        prune("run-ITERATION/chk.gguf", 1, 9)
