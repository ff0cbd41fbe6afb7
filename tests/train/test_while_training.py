"""Errors during training: not finite, a full disk, a file that changes."""

from __future__ import annotations

import errno
import io
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.checkpoint.file import load_checkpoint
from nbllama.model.passes import Model
from nbllama.train import forecast
from nbllama.train.trainer import Trainer
from tests.train.runs import Run, refused
from tests.train.toy_runs import Child, Done, file_bits, log_rows, words


def test_steps_that_are_not_finite(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations 3 and 5 are skipped and reported, and the run continues."""
    loss = Model.loss
    calls = 0

    def spoiled(self: Model, *args: Any, **more: Any) -> float:
        nonlocal calls
        calls += 1
        return math.nan if calls - warm in (3, 5) else loss(self, *args, **more)

    monkeypatch.setattr(forecast, "step_seconds", lambda trainer: (1.0, 1.0))
    warm = 1  # of `compile`
    monkeypatch.setattr(Model, "loss", spoiled)
    done = run(words(folder, "--adam-iter", "6", "--save-every", "1", "--log", "log"))
    assert done.code == 0, done
    rows = log_rows(folder / "log")
    assert [row["iter"] for row in rows if row["skipped"]] == [3, 5]
    assert rows[2]["loss"] is None and rows[2]["grad_norm"] is None and rows[3]["loss"] > 0
    assert done.out.count("skipped: the loss or the gradient is not finite") == 2
    states = [load_checkpoint(folder / f"chk-{i}.gguf") for i in (2, 3, 4)]
    for name, p in states[0].adapter.parameters().items():
        assert (states[1].adapter.parameters()[name] == p).all()
        assert (states[1].m[name] == states[0].m[name]).all()
        assert (states[1].v[name] == states[0].v[name]).all()
    assert not (states[2].m["output.weight.lora_b"] == states[1].m["output.weight.lora_b"]).all()


def test_a_run_that_diverges_ends(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step, bits = Trainer.step, {}

    def spoiled(self: Trainer, *args: Any) -> Any:
        if self.iteration == 5:
            bits.update(file_bits(folder / "chk-LATEST.gguf"))
            self.adapter.pairs["output.weight"].b[7, 0] = np.nan
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", spoiled)
    done = run(words(folder, "--adam-iter", "50", "--save-every", "4"))
    refused(done, 7, "not finite in 3 iterations in a row (last: 8)", "--adam-alpha")
    assert done.out.count("skipped: the loss") == 3
    state = load_checkpoint(folder / "chk-LATEST.gguf")
    assert state.iteration == 4 and file_bits(folder / "chk-LATEST.gguf") == bits
    assert not (folder / "chk-8.gguf").exists()
    assert nbllama.load_adapter(
        folder / "lora-LATEST.gguf", nbllama.load_model(folder / "toy.gguf")
    ).pairs


def test_a_broken_state_is_never_saved(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def spoiled(self: Trainer, *args: Any) -> Any:
        result = step(self, *args)
        if self.iteration == 4:
            self.adapter.pairs["output.weight"].b[7, 0] = np.inf
        return result

    monkeypatch.setattr(Trainer, "step", spoiled)
    for checkpoint in ("chk-ITERATION.gguf", ""):
        done = run(words(folder, "--save-every", "2", "--checkpoint-out", checkpoint))
        refused(done, 7, "output.weight.lora_b", "not")
        assert {p.name for p in folder.glob("lora-*.gguf")} == {"lora-2.gguf", "lora-LATEST.gguf"}


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each iteration adds its number when it begins."""
    steps: list[int] = []
    step = Trainer.step

    def counted(self: Trainer, *args: Any) -> Any:
        steps.append(self.iteration + 1)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", counted)
    return steps


def _full_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    fsync = os.fsync

    def full(fd: int) -> None:
        if is_full():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_does_not_stop_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = _count_steps(monkeypatch)
    _full_disk(monkeypatch, lambda: 3 < len(steps) < 7)
    done = run(words(folder, "--adam-iter", "9", "--save-every", "2"))
    assert done.code == 0 and not done.err
    # tried at 4 and 6, not at every iteration between
    assert done.out.count("not saved: ") == 2
    assert done.out.count("No space left on device; training continues") == 2
    found = {p.name for p in folder.glob("chk-*")}
    assert found == {f"chk-{s}.gguf" for s in ("2", "8", "9", "LATEST")}
    assert not list(folder.glob(".*tmp"))


def test_a_full_disk_at_the_end(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _count_steps(monkeypatch)
    _full_disk(monkeypatch, lambda: len(steps) == 4)
    done = run(words(folder, "--save-every", "3"))
    refused(done, 6, "the last save failed", "lora-4.gguf", "No space left on device")
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 3


def test_a_file_size_limit(folder: Path) -> None:
    """An error of the system in the middle of a write."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    args = words(folder, "--save-every", "2")
    done = subprocess.run(
        [sys.executable, "-m", "nbllama.finetune", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(nbllama.__file__).parents[1])},
        preexec_fn=limit,
    )
    refused(Done(done.returncode, done.stdout, done.stderr), 6, "chk-4.gguf", "File too large")
    assert "chk-2.gguf: cannot be written: File too large; training continues" in done.stdout
    assert not list(folder.glob("chk-*")) and not list(folder.glob(".*tmp"))


def test_a_reader_that_goes_away(folder: Path) -> None:
    """`| head -1`: the run is more important than its output."""
    child = Child(words(folder, "--adam-iter", "6", "--log", "log"), folder)
    assert child.process.stdout is not None
    first = child.process.stdout.readline()
    child.process.stdout.close()
    assert first and child.process.wait(300) == 0
    assert child.process.stderr is not None and child.process.stderr.read() == b""
    child.process.stderr.close()
    assert len(log_rows(folder / "log")) == 6
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 6


def test_a_log_that_fails_does_not_stop_training(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbllama.report.log._opened", lambda path: io.FileIO(path, "ab"))
    done = run(words(folder, "--log", "/dev/full"))
    assert done.code == 0 and "--log /dev/full: No space left on device" in done.out
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 4


def test_a_model_that_changes_meanwhile(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training data are no longer known: nothing is saved."""
    step = Trainer.step

    def touched(self: Trainer, *args: Any) -> Any:
        if self.iteration == 1:
            os.utime(folder / "toy.gguf", ns=(1, 1))
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", touched)
    refused(run(words(folder, "--save-every", "2")), 2, "toy.gguf", "changed")
    assert not list(folder.glob("chk-*"))
