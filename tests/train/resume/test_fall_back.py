"""A damaged newest checkpoint: the run continues from the previous one, and reports it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nbllama.checkpoint.file import load_checkpoint
from tests.train.resume.runs import args_in, results
from tests.train.runs import Run, copy_of, listing, refused
from tests.train.toy_runs import Done


@pytest.fixture
def done(folder: Path, run: Run) -> Path:
    """A run of 6 iterations, saved after every second."""
    assert run(args_in(folder, 6, "--save-every", "2")).code == 0
    return folder


def again(run: Run, folder: Path, n_iter: int, *more: str) -> Done:
    latest = ["--checkpoint-in", str(folder / "chk-LATEST.gguf")]
    return run(args_in(folder, n_iter, "--save-every", "2", *latest, *more))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "bit": lambda b: b[:-40] + bytes([b[-40] ^ 1]) + b[-39:],
    "cut": lambda b: b[: len(b) // 2],
    "empty": lambda b: b"",
    "zeros": lambda b: bytes(len(b)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_is_continued(done: Path, run: Run, damage: str) -> None:
    latest = done / "chk-LATEST.gguf"
    bad = DAMAGE[damage](latest.read_bytes())
    latest.write_bytes(bad)
    (done / "chk-6.gguf").write_bytes(bad)
    before = listing(done)
    refused(again(run, done, 2, "--strict-resume"), 5, "chk-LATEST.gguf")
    assert listing(done) == before
    assert again(run, done, 2, "--dry-run").code == 0
    assert listing(done) == before

    shown = again(run, done, 2)
    assert shown.code == 0 and not shown.err, shown
    assert "warning: " in shown.out and "chk-LATEST.gguf: " in shown.out
    assert "chk-4.gguf after iteration 4\n" in shown.out
    assert "chk-LATEST.gguf.damaged\n" in shown.out
    assert (done / "chk-LATEST.gguf.damaged").read_bytes() == bad
    assert load_checkpoint(latest).iteration == 6
    assert latest.read_bytes() == (done / "chk-6.gguf").read_bytes()
    # and they are the bits of a run that was never interrupted
    other = copy_of(done, "whole")
    assert run(args_in(other, 4, "--save-every", "2")).code == 0
    assert run(
        args_in(other, 2, "--checkpoint-in", str(other / "chk-4.gguf"), "--save-every", "2")
    ).code == 0  # fmt: skip
    assert results(other, 6) == results(done, 6)


def test_a_run_that_is_stopped_before_its_first_save(done: Path, run: Run) -> None:
    """The good one replaces the damaged one from the start."""
    (done / "chk-LATEST.gguf").write_bytes(b"GGUF")
    good = (done / "chk-6.gguf").read_bytes()
    assert again(run, done, 1, "--save-every", "0", "--checkpoint-out", "", "--force").code == 0
    assert (done / "chk-LATEST.gguf").read_bytes() == good
    assert (done / "chk-LATEST.gguf.damaged").read_bytes() == b"GGUF"
    (done / "chk-LATEST.gguf").write_bytes(b"GGUF2")
    assert again(run, done, 1, "--checkpoint-out", "", "--force").code == 0
    assert (done / "chk-LATEST.gguf.damaged-2").read_bytes() == b"GGUF2"


def test_where_there_is_no_good_one(done: Path, run: Run) -> None:
    for path in done.glob("chk-*"):
        path.write_bytes(b"GGUF")
    before = listing(done)
    refused(again(run, done, 2), 5, "chk-LATEST.gguf")
    assert listing(done) == before
    refused(again(run, done, 2, "--checkpoint-in", str(done)), 5, "cannot be used")
    (done / "empty").mkdir()
    empty = ["--checkpoint-in", "empty", "--force"]
    refused(again(run, done, 2, *empty), 5, "the folder contains no checkpoint")


def test_what_is_no_damage_is_refused(done: Path, run: Run) -> None:
    """An adapter, a model, or another run's checkpoint under that name; a requested number."""
    for name, code, why in (("lora-6.gguf", 5, "an adapter"), ("toy.gguf", 5, "not a checkpoint")):
        shutil.copy(done / name, done / "chk-LATEST.gguf")
        before = listing(done)
        refused(again(run, done, 2, "--checkpoint-out", "c.gguf", "--force"), code, why)
        assert listing(done) == before
    (done / "chk-LATEST.gguf").write_bytes(b"GGUF")
    before = listing(done)
    refused(again(run, done, 2, "--batch", "3"), 5, "batch was 2, now 3")
    assert listing(done) == before


def test_a_folder_stands_for_its_newest_good_one(done: Path, run: Run) -> None:
    whole = (done / "chk-6.gguf").read_bytes()
    there = ["--checkpoint-in", str(done)]
    shown = run(args_in(done, 1, *there, "--checkpoint-out", "other.gguf", "--force"))
    assert shown.code == 0 and "after iteration 6\n" in shown.out
    for name in ("chk-6.gguf", "chk-LATEST.gguf"):
        (done / name).write_bytes(whole[:-100])
    (done / "other.gguf").unlink()
    before = listing(done)
    refused(run(args_in(done, 1, *there, "--strict-resume")), 5)
    assert listing(done) == before
    shown = run(args_in(done, 1, *there, "--checkpoint-out", "", "--force"))
    assert shown.code == 0 and "chk-4.gguf after iteration 4\n" in shown.out
    assert shown.out.count("warning: ") == 2
