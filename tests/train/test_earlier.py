"""The files of an earlier run are continued, or kept."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import nbllama
from nbllama.errors import UsageError
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import log_rows

FILES = ["--checkpoint-out", "chk-ITERATION.gguf", "--lora-out", "lora-ITERATION.gguf"]


def short(*more: str) -> list[str]:
    return [
        "--model-base", "toy.gguf", "--train-data", "text.txt", "--ctx", "16", "--batch", "2",
        "--adam-iter", "2", "--warmup", "1", "--threads", "1", "--log", "log.jsonl", *more,
    ]  # fmt: skip


def commands(line: str) -> list[list[str]]:
    """The words of the commands in an error, without the program's name."""
    found = re.findall(r"with: python -m nbllama\.finetune (.*?)(?:; |$)", line)
    return [shlex.split(text) for text in found]


def test_both_commands_that_are_printed_work(folder: Path, run: Run) -> None:
    assert run(short(*FILES)).code == 0
    before = listing(folder)
    line = refused(run(short(*FILES, "--lr", "0.5")), 5, "lr was 0.001, now 0.5", "--force")
    left = {name: data for name, data in listing(folder).items() if name != "log.jsonl"}
    assert left.items() <= before.items() and "log.jsonl" in before
    own, other = commands(line)
    assert run(own).code == 0
    assert log_rows(folder / "log.jsonl")[-1]["iter"] == 4
    assert run(other).code == 0
    assert (folder / "run2-lora-LATEST.gguf").exists()


def test_outputs_without_a_checkpoint_are_kept(folder: Path, run: Run) -> None:
    words = short("--checkpoint-out=", "--lora-out", "mine.gguf")
    assert run(words).code == 0
    before = (folder / "mine.gguf").read_bytes()
    line = refused(run(words), 2, "mine.gguf already exists", "--lora-in", "--force")
    assert (folder / "mine.gguf").read_bytes() == before
    (further,) = commands(line)
    assert run(further).code == 0
    assert (folder / "run2-mine.gguf").exists()
    assert run([*words, "--force"]).code == 0
    assert (folder / "mine.gguf").read_bytes() != before  # another seed
    assert run([*words, "--dry-run"]).code == 0


def test_a_fresh_start_is_asked_for_by_force(folder: Path, run: Run) -> None:
    assert run(short(*FILES)).code == 0
    refused(run(short(*FILES)), 2, "is complete (2 iterations)")
    refused(run(short(*FILES, "--checkpoint-in=")), 2, "already exists", "--checkpoint-in")
    refused(run(short(*FILES, "--checkpoint-in", "none.gguf")), 2, "already exists")
    assert run(short(*FILES, "--force")).code == 0
    assert [row["iter"] for row in log_rows(folder / "log.jsonl")] == [1, 2, 1, 2]
    assert run(short(*FILES, "--checkpoint-in", "chk-LATEST.gguf")).code == 0
    assert log_rows(folder / "log.jsonl")[-1]["iter"] == 4


def test_compat_replaces_as_the_old_tool_did(folder: Path, run: Run) -> None:
    words = short(*FILES, "--compat")
    assert run(words).code == run(words).code == 0


def test_python_replaces_nothing_either(folder: Path) -> None:
    rest: dict[str, Any] = dict(adam_iter=1, ctx=16, batch=2, threads=1, lora_out="peft/")
    nbllama.tune("toy.gguf", "text.txt", **rest)
    records = ["the hen and her rat"] * 4
    with pytest.raises(UsageError, match="already exists") as error:
        nbllama.tune("toy.gguf", records, **rest)
    said = "; pass lora_in='peft/' and a different lora_out to train the existing adapter further"
    assert str(error.value).endswith(f"{said}, or force=True to replace it")
    nbllama.tune("toy.gguf", "text.txt", **rest, force=True)
    rest["checkpoint_out"] = "c-ITERATION.gguf"
    nbllama.tune("toy.gguf", "text.txt", **rest, force=True)
    with pytest.raises(UsageError, match=r"already exists; pass checkpoint_in='c-LATEST\.gguf'"):
        nbllama.tune("toy.gguf", records, **rest)
    nbllama.tune("toy.gguf", "text.txt", **rest, checkpoint_in="c-LATEST.gguf")


@pytest.mark.parametrize("name", ["lora-LATEST.gguf", "lora-2.gguf", "chk-1.gguf"])
def test_a_model_is_not_taken_for_an_earlier_run(folder: Path, run: Run, name: str) -> None:
    """Neither command would work: a model is no adapter, and not even --force replaces it."""
    shutil.copy("toy.gguf", name)
    line = refused(run(short(*FILES)), 3, f"{name}: the existing file is a model")
    assert "with:" not in line and "--force" not in line
