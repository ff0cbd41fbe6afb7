"""Killed, stopped, continued: the same bits as if nothing had happened, or a refusal."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.checkpoint import load_checkpoint
from nbllama.cli.options import PROG
from nbllama.cli.stop import StopFlag
from nbllama.errors import Interrupted
from nbllama.files import RunLock
from nbllama.finetune import main
from nbllama.model import load_model
from nbllama.train import StopRequested, Trainer
from tests.run_states import forge
from tests.toy_models import make_llama
from tests.toy_runs import Child, Done, file_bits, log_rows, toy_chat, toy_text, words

Run = Callable[..., Done]
# 2 x 2 samples an iteration: the 52 samples of the text end within iteration 13
MORE = ["--batch", "2", "--grad-acc", "2", "--save-every", "10"]
KEPT = ("iter", "epoch", "loss", "lr", "grad_norm", "tokens", "skipped")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_llama(tmp_path / "toy.gguf")
    toy_text(tmp_path / "text.txt", 112)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the program here; how it ended."""

    def call(args: list[str]) -> Done:
        capfd.readouterr()
        code = main(args)
        return Done(code, *capfd.readouterr())

    yield call


def copy_of(folder: Path, name: str) -> Path:
    """A folder beside with the same model and text."""
    other = folder / name
    other.mkdir()
    for file in ("toy.gguf", "text.txt"):
        shutil.copy(folder / file, other)
    return other


def args_in(folder: Path, n_iter: int, *more: str) -> list[str]:
    log = str(folder / "log.jsonl")
    return words(folder, *MORE, "--adam-iter", str(n_iter), "--log", log, *more)


def results(folder: Path, iteration: int) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Whole files of an iteration, and the log's numbers up to it by iteration."""
    rows = {row["iter"]: {k: row[k] for k in KEPT} for row in log_rows(folder / "log.jsonl")}
    chk, lora = ((folder / f"{k}-{iteration}.gguf").read_bytes() for k in ("chk", "lora"))
    return chk, lora, [rows[i] for i in range(1, iteration + 1)]


def killed(folder: Path, threads: int) -> None:
    """Start a long run and kill it at a random moment after its 10th iteration was saved."""
    child = Child(args_in(folder, 100_000, "--threads", str(threads)), folder)
    child.wait_for((folder / "chk-10.gguf").exists)
    time.sleep(random.Random(threads).uniform(0, 0.3))
    child.kill()
    for later in folder.glob("*-[2-9]*.gguf"):
        later.unlink()
    rows = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(rows[:11]))  # the first line tells of the run


def test_kill_and_resume_is_bit_for_bit_an_uninterrupted_run(folder: Path, run: Run) -> None:
    whole = {}
    for threads in (1, 2):
        there = copy_of(folder, f"whole-{threads}")
        assert run(args_in(there, 20, "--threads", str(threads))).code == 0
        whole[threads] = results(there, 20)
    assert whole[1] == whole[2]
    rows = whole[1][2]
    assert [row["iter"] for row in rows if row["epoch"] == 1] == list(range(14, 21))
    assert len({row["loss"] for row in rows}) == 20
    bits = file_bits(folder / "whole-1" / "chk-20.gguf")
    assert len(bits) == 2 * (2 + 7 * 2) + 2 and all(any(b) for b in bits.values())

    for threads in (1, 2):
        there = copy_of(folder, f"killed-{threads}")
        killed(there, threads)
        assert load_checkpoint(there / "chk-10.gguf").iteration == 10
        for now in (1, 2):  # also with another number of threads than before
            resumed = folder / f"resumed-{threads}-{now}"
            shutil.copytree(there, resumed)
            more = ["--checkpoint-in", str(resumed / "chk-10.gguf"), "--threads", str(now)]
            done = run(args_in(resumed, 10, *more))
            assert done.code == 0, done
            assert "continuing " in done.out and "after iteration 10" in done.out
            assert results(resumed, 20) == whole[1]
            assert not list(resumed.glob(".*"))  # what the kill left is swept


def test_memory_for_time_in_the_middle_of_a_run(folder: Path, run: Run) -> None:
    """Checkpointing on or off is no part of what a run computes."""
    found = []
    for first, then in (("--use", "--use"), ("--use", "--no"), ("--no", "--use")):
        there = copy_of(folder, first + then)
        for n, how in ((10, first), (10, then)):
            more = ["--checkpoint-in", str(there / "chk-LATEST.gguf"), f"{how}-checkpointing"]
            assert run(args_in(there, n, *more)).code == 0
        found.append(results(there, 20))
    assert found[0] == found[1] == found[2]


def test_chat_is_continued_with_what_the_first_run_chose(folder: Path, run: Run) -> None:
    """Defaults that depend on the length of the run (warm-up, decay) stay those of the first."""
    found = []
    for parts in ((9,), (4, 5)):
        there = folder / f"{len(parts)}"
        there.mkdir()
        make_llama(there / "toy.gguf", tokenizer="bpe")
        chat = toy_chat(there / "chat.jsonl", 7)
        args = [
            "--model-base", str(there / "toy.gguf"), "--train-data", str(chat), "--seed", "3",
            "--checkpoint-in", str(there / "chk-LATEST.gguf"), "--batch", "2",
            "--checkpoint-out", str(there / "chk-ITERATION.gguf"), "--log", "log.jsonl",
            "--lora-out", str(there / "lora-ITERATION.gguf"), "--threads", "1",
        ]  # fmt: skip
        os.chdir(there)
        done = run([*args, "--adam-iter", str(parts[0]), "--warmup", "1", "--cos-decay-steps", "9"])
        assert done.code == 0, done
        for n in parts[1:]:
            done = run([*args, "--adam-iter", str(n)])
            assert done.code == 0, done
            assert re.search(r"(?m)^rate .* warm-up 1, cosine to 0 at iteration 9$", done.out)
        found.append(results(there, 9))
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_chain_of_kills(folder: Path, run: Run, seed: int) -> None:
    """One run, killed at random moments until it is done."""
    rng, n_iter = random.Random(seed), 240

    def saved() -> int:
        return newest.stat().st_mtime_ns if newest.exists() else 0

    whole = copy_of(folder, "whole")
    assert run(args_in(whole, n_iter, "--save-every", "3")).code == 0
    there, kills = copy_of(folder, "chain"), 0
    newest = there / "chk-LATEST.gguf"
    while True:
        done = load_checkpoint(newest).iteration if newest.exists() else 0
        if done == n_iter:
            break
        more = ["--checkpoint-in", str(newest), "--save-every", "3"]
        child = Child(args_in(there, n_iter - done, *more), there)
        try:
            # most of them while they start or train, the others right after a save began
            if rng.random() < 0.7:
                child.process.wait(rng.uniform(0.3, 2.5))
            else:
                before = saved()
                child.wait_for(lambda before=before: saved() != before)  # type: ignore[misc]
        except (subprocess.TimeoutExpired, AssertionError):
            pass
        kills += child.process.poll() is None
        child.kill()
        assert child.process.returncode in (0, -signal.SIGKILL)
    assert kills >= 3
    assert results(there, n_iter)[:2] == results(whole, n_iter)[:2]
    wanted = {row["iter"]: row["loss"] for row in log_rows(whole / "log.jsonl")}
    for line in (there / "log.jsonl").read_text().splitlines():
        if line.endswith("}"):  # a kill may cut a line
            row = json.loads(line)
            assert row["loss"] == wanted[row["iter"]]


# Signals


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

    monkeypatch.setattr("nbllama.cli.session.load_model", interrupted)
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

    monkeypatch.setattr("nbllama.cli.session.load_model", wrapped)
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


# What is refused, and what --force lets pass


@pytest.fixture
def done_10(folder: Path, run: Run) -> Path:
    """The folder after ten iterations."""
    assert run(args_in(folder, 10)).code == 0
    return folder


def resume(run: Run, folder: Path, *more: str, n_iter: int = 4) -> Done:
    return run(args_in(folder, n_iter, "--checkpoint-in", str(folder / "chk-10.gguf"), *more))


def refused(done: Done, code: int, *parts: str) -> None:
    assert done.code == code, done
    (line,) = done.err.splitlines()
    for part in parts:
        assert part in line, line


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".gguf"}


def test_a_missing_checkpoint_is_a_fresh_start(folder: Path, run: Run) -> None:
    done = run(args_in(folder, 3, "--checkpoint-in", "no-such.gguf"))
    assert done.code == 0 and "no checkpoint no-such.gguf: a fresh start\n" in done.out
    assert log_rows(folder / "log.jsonl")[0]["iter"] == 1


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda b: b[:-100], lambda b: b"", lambda b: b"hello", lambda b: b[:200]],
    ids=["bit", "cut", "empty", "text", "head"],
)
def test_a_damaged_checkpoint(done_10: Path, run: Run, damage: Callable[[bytes], bytes]) -> None:
    path = done_10 / "chk-10.gguf"
    path.write_bytes(damage(path.read_bytes()))
    before = files(done_10)
    refused(resume(run, done_10), 5, "chk-10.gguf")
    assert files(done_10) == before


def test_what_is_no_checkpoint(done_10: Path, run: Run) -> None:
    before = files(done_10)
    for name, why in (("lora-10.gguf", "an adapter"), ("toy.gguf", "not a checkpoint")):
        refused(run(args_in(done_10, 4, "--checkpoint-in", str(done_10 / name))), 5, name, why)
    done = run(args_in(done_10, 4, "--checkpoint-in", str(done_10)))
    assert done.code in (2, 5) and len(done.err.splitlines()) == 1
    assert files(done_10) == before


CHANGES: dict[str, tuple[list[str], str]] = {
    "batch": (["--batch", "3"], "batch was 2, now 3"),
    "grad_acc": (["--grad-acc", "1"], "grad_acc was 2, now 1"),
    "rate": (["--adam-alpha", "0.5"], "adam_alpha was 0.001, now 0.5"),
    "warmup": (["--warmup", "7"], "warmup was 2, now 7"),
    "decay": (["--adam-decay", "0.7"], "adam_decay was 0.1, now 0.7"),
    "seed": (["--seed", "12"], "seed was 11, now 12"),
    "alpha": (["--lora-alpha", "9"], "lora_alpha was 4.0, now 9.0"),
    "ctx": (["--ctx", "8"], "ctx was 16, now 8"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_options(done_10: Path, run: Run, what: str) -> None:
    more, line = CHANGES[what]
    before = files(done_10)
    refused(resume(run, done_10, *more), 5, line, "chk-10.gguf", "--force")
    assert files(done_10) == before
    done = resume(run, done_10, *more, "--force")
    assert done.code == 0, done
    assert f"continued by --force: {line}" in done.out
    state = load_checkpoint(done_10 / "chk-LATEST.gguf")
    assert state.iteration == 14
    if what == "alpha":
        assert state.adapter.alpha == state.identity.lora_alpha == 9.0
    # and the forced run is a run of its own, which can be continued with its new options
    latest = ["--checkpoint-in", str(done_10 / "chk-LATEST.gguf")]
    assert run(args_in(done_10, 1, *more, *latest)).code == 0


def test_changed_data(done_10: Path, run: Run) -> None:
    (done_10 / "text.txt").rename(done_10 / "other.txt")
    renamed = ["--train-data", str(done_10 / "other.txt")]
    assert resume(run, done_10, *renamed).code == 0  # the name does not matter
    # fewer samples than were seen of this epoch: forced, it begins again
    text = (done_10 / "other.txt").read_text()[:60]
    (done_10 / "other.txt").write_text(text)
    refused(resume(run, done_10, *renamed), 5, "the training data are others", "--force")
    done = resume(run, done_10, *renamed, "--force")
    assert done.code == 0, done
    assert "continued by --force: the training data are others" in done.out


def test_another_base_model(done_10: Path, run: Run) -> None:
    (done_10 / "toy.gguf").rename(done_10 / "renamed.gguf")
    assert resume(run, done_10, "--model-base", str(done_10 / "renamed.gguf")).code == 0
    make_llama(done_10 / "toy.gguf", seed=1)
    refused(resume(run, done_10), 5, "the base model is another one", "--force")
    assert resume(run, done_10, "--force").code == 0
    make_llama(done_10 / "toy.gguf", n_layer=3)
    for more in ([], ["--force"]):
        done = resume(run, done_10, *more)
        refused(done, 5, "block_count was 2, now 3")
        assert "--force" not in done.err  # it would not help


def test_other_ranks_cannot_be_forced(done_10: Path, run: Run) -> None:
    for more in (["--rank-wq", "3"], ["--lora-r", "8"], ["--rank-att-norm", "1"]):
        refused(resume(run, done_10, *more, "--force"), 5, "rank of ")
    # the same ranks, said in another way, are the same
    ranks = [f"--rank-{t}=4" for t in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "out")]
    assert resume(run, done_10, "--lora-r", "4", *ranks).code == 0


def test_another_lora_r_is_another_scale(done_10: Path, run: Run) -> None:
    slots = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "out", "tok-embd")
    more = ["--lora-r", "8", *[f"--rank-{t}=4" for t in slots]]
    refused(resume(run, done_10, *more), 5, "lora_r was 4, now 8", "--force")
    assert resume(run, done_10, *more, "--force").code == 0
    adapter = load_checkpoint(done_10 / "chk-LATEST.gguf").adapter
    assert (adapter.lora_r, adapter.alpha, adapter.scale) == (8, 4.0, 0.5)


def test_what_was_not_given_comes_from_the_checkpoint(folder: Path, run: Run) -> None:
    first = ["--ctx", "24", "--adam-alpha", "0.02", "--warmup", "3", "--cos-decay-steps", "30",
             "--lora-r", "2", "--lora-alpha", "5", "--rank-wq", "3", "--rank-out", "0"]  # fmt: skip
    base = [
        "--model-base", "toy.gguf", "--train-data", "text.txt", "--checkpoint-in", "chk-4.gguf",
        "--checkpoint-out", "chk-ITERATION.gguf", "--lora-out", "", "--batch", "2",
    ]  # fmt: skip
    assert run([*base, *first, "--adam-iter", "4"]).code == 0
    one = load_checkpoint("chk-4.gguf")
    done = run([*base, "--adam-iter", "2", "--threads", "1"])
    assert done.code == 0, done
    two = load_checkpoint("chk-6.gguf")
    assert two.identity == one.identity and two.seed == one.seed
    assert two.adapter.pairs["blk.1.attn_q.weight"].rank == 3
    assert "output.weight" not in two.adapter.pairs and two.adapter.scale == 2.5


def test_another_environment_is_said(done_10: Path, run: Run) -> None:
    def elsewhere(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        entries["nbllama.environment.cpu"] = ("znver9", entries["nbllama.environment.cpu"][1])

    assert "was" not in resume(run, done_10, "--dry-run").out
    forge(done_10 / "chk-10.gguf", elsewhere)
    done = resume(run, done_10)
    assert done.code == 0
    assert "cpu was znver9 when the checkpoint was written" in done.out


def test_a_checkpoint_whose_tensors_are_not_the_models_meets_no_kernel(
    done_10: Path, run: Run
) -> None:
    """Forged with a right sha256, ranks and sizes: the pairs themselves are looked at."""

    def cut(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = "blk.0.ffn_up.weight.lora_b"
        tensors[name] = tensors[name][:40].copy()
        removed = 56 * 4
        for moments in ("first", "second"):
            key = f"optimizer.adam.{moments}_moments"
            tensors[key] = tensors[key][:-removed].copy()

    forge(done_10 / "chk-10.gguf", cut)
    for more in ([], ["--force"]):
        refused(resume(run, done_10, *more), 5, "blk.0.ffn_up.weight is for (40, 64)")


def test_a_locked_output_is_not_touched(done_10: Path, run: Run) -> None:
    before = files(done_10)
    with RunLock(done_10 / "chk-LATEST.gguf"):
        refused(resume(run, done_10), 3, "another run is writing it", str(os.getpid()))
    assert files(done_10) == before
    load_model(done_10 / "toy.gguf")
