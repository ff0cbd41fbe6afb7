"""Stopped by a signal: the saved files, and the command that continues."""

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
from nbllama.system.start import Stopped, Unwinding, unwinding
from nbllama.train.run.stop import StopFlag
from nbllama.train.trainer import StopRequested, Trainer
from tests.train.resume.runs import args_in, results
from tests.train.runs import Run, copy_of, refused
from tests.train.toy_runs import Child, _by_default, events, log_rows


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
    """A library can turn the interruption into its own error."""

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
    # the command is the same, with the drawn seed
    again = shlex.split(command)
    seed = re.search(r"(?m)^seed +(\d+)$", done.out)
    at = args.index("--seed")
    assert seed and again == [*args[:at], *args[at + 2 :], "--seed", seed[1]]
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
        "stopped after iteration 2; the run cannot be continued because --checkpoint-out is empty\n"
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
    of_the_tests = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
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
    with pytest.raises(Interrupted) as e, StopFlag().installed():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)
    assert e.value.exit_code == 128 + signal.SIGUSR1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopFlag().installed():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])


def _signal_in_evaluation(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """SIGINT in the evaluation after an iteration."""
    real = Trainer.validation_loss

    def evaluating(self: Trainer, *args: Any) -> Any:
        if self.iteration == iteration:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(Trainer, "validation_loss", evaluating)


EVALUATED = ["--val-split", "0.5", "--eval-every", "3", "--adam-iter", "6", "--report", "page.html"]


def evaluations(folder: Path) -> list[tuple[int, float]]:
    rows = events(folder / "log.jsonl", "evaluation")
    return [(row["iter"], row["val_loss"]) for row in rows]


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_signal_in_an_evaluation(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The printed command compensates for it, also after the last iteration: same result."""
    assert run(args_in(folder, 6, *EVALUATED)).code == 0
    there = copy_of(folder, "stopped")
    monkeypatch.chdir(there)
    with monkeypatch.context() as patch:
        _signal_in_evaluation(patch, at)
        done = run(args_in(there, 6, *EVALUATED))
    assert done.code == 130 and f"stopped after iteration {at}; " in done.err
    command = shlex.split(done.err.partition(f"{PROG} ")[2])
    if at == 6:
        assert command[-6:-2] == ["--adam-iter", "0", "--epochs", "0"]
        with monkeypatch.context() as patch:  # and once more
            _signal_in_evaluation(patch, at)
            again = run(command)
        assert again.code == 130 and "start again with: " in again.err
    again = run(command)
    assert again.code == 0 and not again.err
    for name in ("chk-6.gguf", "chk-LATEST.gguf", "lora-6.gguf", "lora-BEST.gguf"):
        assert (there / name).read_bytes() == (folder / name).read_bytes(), name
    assert evaluations(there) == evaluations(folder)
    assert (there / "page.html").exists()


def test_a_signal_after_the_reason_to_end(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that had ended early is not trained further by the printed command."""
    more = [
        *EVALUATED,
        "--opt-max-no-improvement",
        "1",
        "--adam-alpha",
        "1e-30",
        "--eval-every",
        "5",
    ]
    assert run(args_in(folder, 40, *more, "--adam-iter", "40")).code == 0
    last = log_rows(folder / "log.jsonl")[-1]["iter"]
    assert last % 5
    there = copy_of(folder, "stopped")
    monkeypatch.chdir(there)
    with monkeypatch.context() as patch:
        _signal_in_evaluation(patch, last)
        done = run(args_in(there, 40, *more, "--adam-iter", "40"))
    command = shlex.split(done.err.partition(f"{PROG} ")[2])
    assert done.code == 130 and run(command).code == 0
    assert results(there, last)[1:] == results(folder, last)[1:]
    assert evaluations(there) == evaluations(folder)


def test_no_iterations_are_only_for_a_checkpoint(folder: Path, run: Run) -> None:
    refused(run(args_in(folder, 0)), 2, "--adam-iter 0: there is no checkpoint to resume from")


def test_a_second_signal_does_not_break_off_the_first() -> None:
    handler = Unwinding()
    with pytest.raises(Stopped) as e:
        handler(signal.SIGTERM, None)
    assert e.value.signum == signal.SIGTERM
    handler(signal.SIGINT, None)  # within the second: cleaning up continues
    handler.last -= 2
    with pytest.raises(Stopped):
        handler(signal.SIGINT, None)
    handler.last, handler.over = -1.0, True
    handler(signal.SIGINT, None)


class Finalizer:
    """An object that is finalized while a signal arrives."""

    finalized = False

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        Finalizer.finalized = True  # not reached: the handler raises `Stopped` before


def test_a_signal_in_a_finalizer_stops_without_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Python prints and ignores exceptions there."""
    with pytest.raises(Stopped) as e, unwinding():
        made = Finalizer()
        del made
        for _ in range(200):
            time.sleep(0.01)
        pytest.fail("the signal was lost")
    assert e.value.signum == signal.SIGTERM
    assert not Finalizer.finalized
    assert capfd.readouterr() == ("", "")
    stop = StopFlag("SIGTERM")
    with pytest.raises(Interrupted, match="before the first iteration"), stop.installed():
        made = Finalizer()
        del made
        for _ in range(200):
            time.sleep(0.01)
        pytest.fail("the signal was lost")
    assert capfd.readouterr() == ("", "")


BROKEN = """
import atexit, os, signal, sys, time
from nbllama.system.program import run_program
from nbllama.system.start import Program

class Broken:
    def __del__(self):
        os.abort()  # as free() does for memory that was freed before

def program(words):
    broken = Broken()
    signal.raise_signal(signal.SIGTERM)
    time.sleep(5)

atexit.register(print, "cleaned")
Program.started = True
sys.exit(run_program(program, []))
"""


def test_a_stopped_program_releases_no_objects() -> None:
    """A finalizer that the signal interrupted would free its memory twice."""
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleaned\n", "stopped by SIGTERM\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("module", ["numba", "nbllama.options.finetune.table"])
def test_a_signal_among_the_imports(folder: Path, name: str, module: str) -> None:
    """From our first line on, and also if the import uses `exec`."""
    (folder / "sitecustomize.py").write_text(
        "import sys, os, signal, types\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            exec('os.kill(os.getpid(), signal.{name})')\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    path = os.pathsep.join(
        [str(folder), str(Path(sys.modules["nbllama"].__file__ or "").parents[1])]
    )
    done = subprocess.run(
        [sys.executable, "-m", "nbllama.finetune", *args_in(folder, 3)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=folder,
        preexec_fn=_by_default,
    )  # fmt: skip
    assert done.returncode == 128 + getattr(signal, name), done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("stopped b"), done
    assert not list(folder.glob("chk*")) and not list(folder.glob(".*"))
