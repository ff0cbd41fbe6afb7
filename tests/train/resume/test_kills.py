"""Killed and continued: the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from examples.toy_models import make_llama
from nbllama.checkpoint.file import load_checkpoint
from tests.train.resume.runs import args_in, results
from tests.train.runs import Run, copy_of
from tests.train.toy_runs import Child, file_bits, log_rows, toy_chat


def killed(folder: Path, threads: int) -> None:
    """Start a long run and kill it at a random moment after its 10th iteration was saved."""
    child = Child(args_in(folder, 100_000, "--threads", str(threads)), folder)
    child.wait_for((folder / "chk-10.gguf").exists)
    time.sleep(random.Random(threads).uniform(0, 0.3))
    child.kill()
    for later in folder.glob("*-[2-9]*.gguf"):
        later.unlink()
    rows = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(rows[:11]))  # the first line describes the run


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
            assert "resuming from " in done.out and "after iteration 10" in done.out
            assert results(resumed, 20) == whole[1]
            assert not list(resumed.glob(".*"))  # leftovers of the kill are removed


def test_memory_for_time_in_the_middle_of_a_run(folder: Path, run: Run) -> None:
    """Checkpointing on or off does not change the results of a run."""
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
    rng, n_iter = random.Random(seed), 900

    def saved() -> int:
        return newest.stat().st_mtime_ns if newest.exists() else 0

    whole = copy_of(folder, "whole")
    assert run(args_in(whole, n_iter, "--save-every", "9")).code == 0
    there, kills = copy_of(folder, "chain"), 0
    newest = there / "chk-LATEST.gguf"
    while True:
        done = load_checkpoint(newest).iteration if newest.exists() else 0
        if done == n_iter:
            break
        more = ["--checkpoint-in", str(newest), "--save-every", "9"]
        child = Child(args_in(there, n_iter - done, *more), there)
        try:
            # most of them during start or training, the others directly after the start of a save
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
        if line.endswith("}"):  # a kill can cut a line
            row = json.loads(line)
            if "event" not in row:  # not the line about the run at each start
                assert row["loss"] == wanted[row["iter"]]
