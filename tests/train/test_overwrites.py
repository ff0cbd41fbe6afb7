"""No output of a run is one of its inputs, for any names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbllama.errors import UsageError
from nbllama.options.finetune.table import OPTIONS, parse
from nbllama.train.run.outputs import Outputs
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import words

READ = [o for o in OPTIONS if o.file == "reads"]
WRITTEN = [o for o in OPTIONS if o.file == "writes"]
OFF = {"checkpoint_out": "", "lora_out": "", "log": "", "report": ""}


def check(**values: str) -> None:
    """The program's first check of these options, by their fields."""
    given = {"model_base": "m.gguf", "checkpoint_in": ""} | OFF | values
    more = ["--dump", "1:loss"] if "dump_out" in values else []
    more += ["--objective", "dpo"] if "reference" in values else []
    Outputs(parse([f"--{name.replace('_', '-')}={text}" for name, text in given.items()] + more))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("written", WRITTEN, ids=lambda o: o.dest)
@pytest.mark.parametrize("read", READ, ids=lambda o: o.dest)
def test_every_output_against_every_input(here: Path, read: object, written: object) -> None:
    """Also for options that are added later: the table marks inputs and outputs."""
    into, out = read.dest, written.dest  # type: ignore[attr-defined]
    # --config is read before anything else, and may be empty
    (here / "same.gguf").write_bytes(b"" if into == "config" else b"x")
    if (out, into) == ("checkpoint_out", "checkpoint_in"):
        check(**{out: "same.gguf", into: "same.gguf"})
        return
    with pytest.raises(UsageError, match=r"are the same file same\.gguf"):
        check(**{out: "same.gguf", into: "same.gguf"})
    check(**{out: "other.gguf", into: "same.gguf"})


@pytest.mark.parametrize("out", [o.dest for o in WRITTEN])
@pytest.mark.parametrize("name", ["./in.gguf", "sub/../in.gguf", "hard.gguf", "soft.gguf", "ABS"])
def test_other_names_of_an_input(here: Path, out: str, name: str) -> None:
    (here / "in.gguf").write_bytes(b"x")
    (here / "sub").mkdir()
    os.link("in.gguf", "hard.gguf")
    (here / "soft.gguf").symlink_to("in.gguf")
    name = str(here / "in.gguf") if name == "ABS" else name
    with pytest.raises(UsageError, match="--checkpoint-in" if out != "checkpoint_out" else "--lo"):
        check(**{out: name, "checkpoint_in" if out != "checkpoint_out" else "lora_in": "in.gguf"})


def test_numbered_outputs_and_their_links(here: Path) -> None:
    for name in ("lora-7.gguf", "lora-LATEST.gguf", "lora-BEST.gguf"):
        with pytest.raises(UsageError, match="--lora-out and --lora-in are the same file"):
            check(lora_out="lora-ITERATION.gguf", lora_in=name)  # whether it is there or not
    check(lora_out="lora-ITERATION.gguf", lora_in="lora-first.gguf")
    (here / "lora-7.gguf").write_bytes(b"x")
    (here / "soft.gguf").symlink_to("lora-7.gguf")
    os.link("lora-7.gguf", "hard.gguf")
    for name in ("soft.gguf", "hard.gguf"):
        with pytest.raises(UsageError, match="--lora-in"):
            check(lora_out="lora-ITERATION.gguf", lora_in=name)
    with pytest.raises(UsageError, match="--lora-in"):
        check(lora_out="lora.gguf", lora_in="lora-BEST.gguf")
    with pytest.raises(UsageError, match="--dump-out and --sample-prompts"):
        check(dump_out="d-ITERATION.npz", sample_prompts="d-12.npz")
    check(log="log-ITERATION", sample_prompts="log-12")  # a log's name has no number


def test_a_folder_that_is_read(here: Path) -> None:
    (here / "data").mkdir()
    for name in ("train.jsonl", "valid.csv", "notes.md"):
        (here / "data" / name).write_bytes(b"x")
    for name in ("data/train.jsonl", "data/valid.csv", "data/../data/train.jsonl"):
        with pytest.raises(UsageError, match="--report and --train-data are the same file"):
            check(train_data="data", report=name)
    check(train_data="data/", lora_out="data/lora-ITERATION.gguf", log="data/log.jsonl")
    with pytest.raises(UsageError, match="--lora-out and --train-data"):
        check(train_data="data", lora_out="data/")
    (here / "peft").mkdir()
    (here / "peft" / "adapter_config.json").write_bytes(b"x")
    for written in ({"lora_out": "peft/"}, {"log": "peft/adapter_config.json"}):
        with pytest.raises(UsageError, match="--lora-in"):
            check(lora_in="peft", **written)
    with pytest.raises(UsageError, match="--chat-template"):
        check(chat_template="peft/adapter_config.json", lora_out="peft/")


def test_a_link_to_the_folder_of_an_input(here: Path) -> None:
    (here / "there").mkdir()
    (here / "link").symlink_to("there")
    with pytest.raises(UsageError, match="--checkpoint-in"):
        check(lora_out="link/x-ITERATION.gguf", checkpoint_in="there/x-3.gguf")


def test_nothing_is_lost(folder: Path, run: Run) -> None:
    """The pairs that once overwrote their input, in the program itself."""
    (folder / "data").mkdir()
    for name in ("good.gguf", "t.jinja", "data/train.jsonl", "in.gguf"):
        (folder / name).write_bytes(b"x")
    before = listing(folder), listing(folder / "data")
    for read, file in (
        ("--checkpoint-in", "good.gguf"), ("--lora-in", "in.gguf"), ("--chat-template", "t.jinja"),
    ):  # fmt: skip
        for written in ("--lora-out", "--log", "--report", "--checkpoint-out"):
            if (read, written) != ("--checkpoint-in", "--checkpoint-out"):
                refused(run(words(folder, read, file, written, file)), 2, written, read, file)
    refused(run(words(folder, "--train-data", "data", "--report", "data/train.jsonl")), 2)
    assert (listing(folder), listing(folder / "data")) == before


def test_a_checkpoint_is_continued_under_its_own_name(folder: Path, run: Run) -> None:
    assert run(words(folder, "--checkpoint-out", "c.gguf")).code == 0
    assert run(words(folder, "--checkpoint-in", "c.gguf", "--checkpoint-out", "c.gguf")).code == 0
