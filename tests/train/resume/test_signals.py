"""Stopped by a signal: what is saved, and the command that goes on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.errors import Interrupted
from nbllama.options.finetune.table import PROG
from nbllama.train.run.stop import StopFlag
from nbllama.train.trainer import StopRequested, Trainer
from tests.train.resume.runs import args_in, results
from tests.train.runs import Run, copy_of
from tests.train.toy_runs import Child, log_rows


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=(pytest.mark.slow, pytest.mark.long)),
    ],
)
def test_a_signal_saves_and_the_printed_command_continues(
    folder: Path, run: Run, signum: int, code: int
) -> None:
    n_iter, rarely, log = 60, ["--save-every", "1000"], folder / "it's a folder" / "log.jsonl"
    whole = copy_of(folder, "whole")
    assert run(args_in(whole, n_iter, *rarely)).code == 0
    there = copy_of(folder, log.parent.name)
    child = Child(args_in(there, n_iter, *rarely), there)
    child.wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 10)
    sent = time.monotonic()
    child.process.send_signal(signum)
    done = child.end()
    assert time.monotonic() - sent < 5
    assert done.code == code, done
    found = re.fullmatch(
        rf"stopped after iteration (\d+); continue with: ({re.escape(PROG)} .*)\n", done.err
    )
    assert found, done.err
    stopped = int(found[1])
    assert 10 <= stopped < n_iter
    assert load_checkpoint(there / "chk-LATEST.gguf").iteration == stopped
    assert (there / f"chk-{stopped}.gguf").exists() and not list(there.glob(".*"))
    assert log_rows(there / "log.jsonl")[-1]["iter"] == stopped

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    python_path = str(Path(sys.modules["nbllama"].__file__ or "").parents[1])
    shell = subprocess.run(
        ["bash", "-c", found[2]],
        env=os.environ | {"PATH": path, "PYTHONPATH": python_path},
        cwd=there,
        capture_output=True,
        text=True,
    )
    assert shell.returncode == 0, shell
    assert f"after iteration {stopped}" in shell.stdout
    assert results(there, n_iter) == results(whole, n_iter)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_loads_ends_at_once(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    def interrupted(path: Any) -> None:
        os.kill(os.getpid(), signum)
        time.sleep(60)

    monkeypatch.setattr("nbllama.train.run.session.load_model", interrupted)
    before = signal.getsignal(signum)
    done = run(args_in(folder, 20))
    assert (done.code, done.err) == (
        code,
        "stopped before the first iteration; nothing was saved\n",
    )
    assert signal.getsignal(signum) == before
    assert {p.name for p in folder.iterdir()} == {"toy.gguf", "text.txt", "log.jsonl"}


def test_what_a_signal_broke_is_not_taken_for_a_bug(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may turn the interruption into an error of its own."""

    def wrapped(path: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except BaseException:
            raise RuntimeError("failed in the compiler") from None

    monkeypatch.setattr("nbllama.train.run.session.load_model", wrapped)
    assert run(args_in(folder, 20)).code == 130


def _signal_in_step(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """SIGINT in the middle of the nth step from now."""
    step, left = Trainer.step, nth

    def stepping(self: Trainer, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", stepping)


def test_a_signal_in_the_first_step(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = args_in(folder, 20)
    args[args.index("--seed") + 1] = "-1"
    with monkeypatch.context() as patch:
        _signal_in_step(patch, 1)
        done = run(args)
    assert done.code == 130
    (line,) = done.err.splitlines()
    before, _, command = line.partition(f": {PROG} ")
    assert before == "stopped after iteration 0; start again with"
    assert not list(folder.glob("chk-*"))
    # the command is the same one, with the seed that was drawn
    again = shlex.split(command)
    seed = re.search(r"(?m)^seed +(\d+)$", done.out)
    assert seed and again == [*args, "--seed", seed[1]]
    assert run(again).code == 0


def test_a_signal_before_anything_new_was_done(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest file is not this run's: the command must name the one that was continued."""
    assert run(args_in(folder, 20)).code == 0
    with monkeypatch.context() as patch:
        _signal_in_step(patch, 1)
        done = run(args_in(folder, 10, "--checkpoint-in", "chk-10.gguf"))
    assert done.code == 130 and "stopped after iteration 10; start again with: " in done.err
    command = shlex.split(done.err.partition(f"{PROG} ")[2])
    assert command[-4:] == ["--checkpoint-in", "chk-10.gguf", "--seed", "11"]
    assert load_checkpoint(folder / "chk-LATEST.gguf").iteration == 20


def test_a_stopped_step_is_dropped(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(args_in(folder, 20)).code == 0
    there = copy_of(folder, "stopped")
    with monkeypatch.context() as patch:
        _signal_in_step(patch, 14)
        done = run(args_in(there, 20))
    assert done.code == 130 and "stopped after iteration 13; continue with: " in done.err
    command = shlex.split(done.err.partition(f"{PROG} ")[2])
    assert command[-8:-2] == [
        "--checkpoint-in", str(there / "chk-LATEST.gguf"), "--adam-iter", "7", "--epochs", "0",
    ]  # fmt: skip
    assert run(command).code == 0
    assert results(there, 20) == results(folder, 20)


def test_a_signal_without_checkpoints(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signal_in_step(monkeypatch, 3)
    done = run(args_in(folder, 20, "--checkpoint-out", ""))
    assert done.code == 130
    assert done.err == (
        "stopped after iteration 2; it cannot be continued, as --checkpoint-out is empty\n"
    )
    assert {p.name for p in folder.glob("lora*.gguf")} == {"lora-2.gguf", "lora-LATEST.gguf"}


def test_a_save_that_fails_after_a_signal(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _signal_in_step(monkeypatch, 3)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run(args_in(folder, 20))
    assert done.code == 6 and "the last save failed" in done.err


def test_the_flag() -> None:
    of_the_tests = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    try:
        the_flag()
    finally:
        signal.signal(signal.SIGHUP, of_the_tests)


def the_flag() -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    flag = StopFlag()
    with flag.installed():
        flag.at_once = False
        flag.check()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested):
            flag.check()
        assert flag.signum == signal.SIGTERM  # the first one decides
    assert {s: signal.getsignal(s) for s in before} == before
    with pytest.raises(Interrupted) as e, StopFlag().installed():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)
    assert e.value.exit_code == 129
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopFlag().installed():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
