"""Existing files at a run's output names: kept, removed, or locked."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.errors import OutputError
from nbllama.options.finetune.table import parse
from nbllama.train.run.board import Board
from nbllama.train.run.outputs import Outputs
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import events, words

TEMPORARY = "0123456789ab.nbllama-tmp"


@pytest.mark.parametrize(
    ("option", "name", "content"),
    [
        ("--checkpoint-out", "notes.txt", b"my notes"),
        ("--checkpoint-out", "chk-LATEST.gguf", "toy.gguf"),
        ("--lora-out", "lora-LATEST.gguf", "toy.gguf"),
        ("--lora-out", "lora-BEST.bin", b"GGUF"),
        ("--lora-out", "lora-LATEST.config.yaml", b"ctx: 7\n"),
        ("--report", "page.html", b"<!DOCTYPE html><title>My page</title>"),
        ("--log", "log.jsonl", b"GGUF"),
        ("--log", "chats.jsonl", b'{"prompt": "a", "completion": "b"}\n'),
        ("--log", "events.jsonl", b'{"event": "run", "text": "a race"}\n'),
        ("--report", "chats.jsonl", b'{"messages": []}\n'),
    ],
)
def test_a_file_of_another_kind_is_kept(
    folder: Path, run: Run, option: str, name: str, content: bytes | str
) -> None:
    if isinstance(content, str):
        shutil.copy(folder / content, folder / name)
    else:
        (folder / name).write_bytes(content)
    before = listing(folder)
    pattern = name.replace("LATEST", "ITERATION").replace("BEST", "ITERATION")
    given = pattern.replace(".config.yaml", ".gguf")
    if option == "--report":  # its log has the same name
        given = given.replace(".jsonl", ".html")
    refused(run(words(folder, option, given)), 3, name, "and is not replaced")
    assert listing(folder) == before


def test_a_numbered_file_of_another_kind_is_kept(folder: Path, run: Run) -> None:
    """The newest file is still saved."""
    (folder / "chk-4.gguf").write_bytes(b"mine")
    shutil.copy(folder / "toy.gguf", folder / "lora-2.gguf")
    model = (folder / "toy.gguf").read_bytes()
    done = run(words(folder, "--save-every", "2"))
    assert done.code == 6 and "chk-4.gguf: the existing file is not a GGUF file" in done.err
    assert "not saved: " in done.out and "lora-2.gguf: the existing file is a model" in done.out
    assert (folder / "chk-4.gguf").read_bytes() == b"mine"
    assert (folder / "lora-2.gguf").read_bytes() == model
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4
    assert (folder / "lora-4.gguf").exists() and load_checkpoint(folder / "chk-2.gguf")


def test_a_dump_of_another_kind_is_kept(folder: Path, run: Run) -> None:
    (folder / "d-2.npz").write_bytes(b"mine")
    done = run(words(folder, "--dump", "2-3:loss", "--dump-out", "d-ITERATION.npz"))
    assert done.code == 0 and "d-2.npz: the existing file is not an .npz file" in done.out
    assert (folder / "d-2.npz").read_bytes() == b"mine" and (folder / "d-3.npz").exists()


def test_two_runs_do_not_share_a_folder_of_tensorboard(folder: Path, run: Run) -> None:
    pytest.importorskip("tensorboardX")
    with ExitStack() as stack:
        Board("runs/board", stack)
        refused(run(words(folder, "--tensorboard", "runs/board")), 3, "board", "another run")
    assert run(words(folder, "--tensorboard", "runs/board")).code == 0
    assert all(p.name.startswith("events.") for p in (folder / "runs" / "board").iterdir())


def claimed(stack: ExitStack, *more: str) -> None:
    given = ["--model-base=m.gguf", "--checkpoint-in=", "--lora-out=", *more]
    Outputs(parse(given)).claim(stack)


def test_the_lock_is_that_of_the_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another word for the newest file, or for the number, does not avoid it."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        claimed(stack, "--checkpoint-out=c-ITERATION.gguf")
        for more in (
            ["--checkpoint-out=c-ITERATION.gguf", "--fn-latest=NEW"],
            ["--checkpoint-out=c-NR.gguf", "--pattern-fn-it=NR", "--fn-latest=NEW"],
            ["--checkpoint-out=c-LATEST.gguf"],
            ["--checkpoint-out=./c-ITERATION.gguf"],
        ):
            with ExitStack() as other, pytest.raises(OutputError, match="another run is writing"):
                claimed(other, *more)
        with ExitStack() as other:
            claimed(other, "--checkpoint-out=d-ITERATION.gguf")
    with ExitStack() as stack:
        claimed(stack, "--checkpoint-out=", "--report=page.html")
        with ExitStack() as other, pytest.raises(OutputError, match="another run is writing"):
            claimed(other, "--checkpoint-out=", "--report=page.html", "--log=other")
    dump = ["--checkpoint-out=", "--dump=1:loss", "--dump-out=d-ITERATION.npz"]
    with ExitStack() as stack:
        claimed(stack, *dump)
        with ExitStack() as other, pytest.raises(OutputError, match=r"d-ITERATION\.npz: another"):
            claimed(other, *dump)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_every_kind_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = [
        "chk-7.gguf", "chk-LATEST.gguf", "lora-7.gguf", "lora-BEST.gguf", "page.html", "d-3.npz",
        "lora-LATEST.config.yaml", "lora-LATEST.card.md", "lora-LATEST.Modelfile",
    ]  # fmt: skip
    other = tmp_path / f".chk-x.gguf.{TEMPORARY}"
    for path in (*(tmp_path / f".{name}.{TEMPORARY}" for name in ours), other):
        path.write_bytes(b"half")
    given = [
        "--model-base=m.gguf", "--checkpoint-in=", "--checkpoint-out=chk-ITERATION.gguf",
        "--lora-out=lora-ITERATION.gguf", "--report=page.html", "--card", "--dump=1:loss",
        "--dump-out=d-ITERATION.npz",
    ]  # fmt: skip
    with ExitStack() as stack:
        Outputs(parse(given)).claim(stack)
    assert list(tmp_path.iterdir()) == [other]


HOSTILE = {
    "iter": 0, "loss": 1, "n_iter": "x", "event": "evaluation", "val_loss": 1, "samples": 5,
}  # fmt: skip


def test_a_page_never_stops_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "log").write_text(json.dumps(HOSTILE) + "\n")
    more = ["--val-split", "0.1", "--eval-every", "2", "--report", "page.html", "--log", "log"]
    assert run(words(folder, *more)).code == 0
    assert len(events(folder / "log", "evaluation")) == 4  # theirs, and 0, 2, 4

    def broken(log: str, out: str) -> None:
        raise TypeError("a bug\x1b[31m")

    monkeypatch.setattr("nbllama.train.run.outputs.write_report", broken)
    done = run(words(folder, *more))
    assert done.code == 0 and not done.err
    assert "--report was not written: a bug\\x1b[31m\n" in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4


def test_a_card_never_stops_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> str:
        raise TypeError("a bug")

    monkeypatch.setattr("nbllama.train.run.card.card", broken)
    done = run(words(folder, "--card"))
    assert done.code == 0 and "--card: a bug\n" in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4
