"""Checkpoints that cannot be continued, and cases that `--force` allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.toy_models import make_llama
from nbllama.checkpoint.file import load_checkpoint
from nbllama.model.passes import load_model
from nbllama.system.run_lock import RunLock
from tests.checkpoint.run_states import forge
from tests.train.resume.runs import args_in
from tests.train.runs import Run, refused
from tests.train.toy_runs import Done, log_rows


@pytest.fixture
def done_10(folder: Path, run: Run) -> Path:
    """The folder after ten iterations."""
    assert run(args_in(folder, 10)).code == 0
    return folder


def resume(run: Run, folder: Path, *more: str, n_iter: int = 4) -> Done:
    return run(args_in(folder, n_iter, "--checkpoint-in", str(folder / "chk-10.gguf"), *more))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".gguf"}


def test_a_missing_checkpoint_is_a_fresh_start(folder: Path, run: Run) -> None:
    done = run(args_in(folder, 3, "--checkpoint-in", "no-such.gguf"))
    assert (
        done.code == 0
        and "there is no checkpoint no-such.gguf; starting from the beginning\n" in done.out
    )
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
    (done_10 / "adapter.gguf").write_bytes((done_10 / "lora-10.gguf").read_bytes())
    before = files(done_10)
    for name, why in (("adapter.gguf", "an adapter"), ("toy.gguf", "not a checkpoint")):
        more = ["--checkpoint-out", "", "--lora-out", "other.gguf"]
        path = str(done_10 / name)
        refused(run(args_in(done_10, 4, "--checkpoint-in", path, *more)), 5, name, why)
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
    assert f"resumed because of --force: {line}" in done.out
    state = load_checkpoint(done_10 / "chk-LATEST.gguf")
    assert state.iteration == 14
    if what == "alpha":
        assert state.adapter.alpha == state.identity.lora_alpha == 9.0
    # and the forced run is a separate run, which can be continued with its new options
    latest = ["--checkpoint-in", str(done_10 / "chk-LATEST.gguf")]
    assert run(args_in(done_10, 1, *more, *latest)).code == 0


def test_changed_data(done_10: Path, run: Run) -> None:
    (done_10 / "text.txt").rename(done_10 / "other.txt")
    renamed = ["--train-data", str(done_10 / "other.txt")]
    assert resume(run, done_10, *renamed).code == 0  # the name does not matter
    # fewer samples than were seen of this epoch: forced, it begins again
    text = (done_10 / "other.txt").read_text()[:60]
    (done_10 / "other.txt").write_text(text)
    refused(resume(run, done_10, *renamed), 5, "the training data are different", "--force")
    done = resume(run, done_10, *renamed, "--force")
    assert done.code == 0, done
    assert "resumed because of --force: the training data are different" in done.out


def test_another_base_model(done_10: Path, run: Run) -> None:
    (done_10 / "toy.gguf").rename(done_10 / "renamed.gguf")
    assert resume(run, done_10, "--model-base", str(done_10 / "renamed.gguf")).code == 0
    make_llama(done_10 / "toy.gguf", seed=1)
    refused(resume(run, done_10), 5, "the base model is different", "--force")
    assert resume(run, done_10, "--force").code == 0
    make_llama(done_10 / "toy.gguf", n_layer=3)
    for more in ([], ["--force"]):
        done = resume(run, done_10, *more)
        refused(done, 5, "block_count was 2, now 3")
        assert "--force" not in done.err  # it would not help


def test_other_ranks_cannot_be_forced(done_10: Path, run: Run) -> None:
    for more in (["--rank-wq", "3"], ["--lora-r", "8"], ["--rank-att-norm", "1"]):
        refused(resume(run, done_10, *more, "--force"), 5, "rank of ")
    # the same ranks in another notation are the same
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
    assert two.identity.settings == {**one.identity.settings, "last": 6}
    assert replace(two.identity, settings=one.identity.settings) == one.identity
    assert two.seed == one.seed
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
    """Forged with a correct sha256, ranks and sizes: the pairs themselves are checked."""

    def cut(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = "blk.0.ffn_up.weight.lora_b"
        tensors[name] = tensors[name][:40].copy()
        removed = 56 * 4
        for moments in ("first", "second"):
            key = f"optimizer.adam.{moments}_moments"
            tensors[key] = tensors[key][:-removed].copy()

    forge(done_10 / "chk-10.gguf", cut)
    for more in ([], ["--force"]):
        refused(resume(run, done_10, *more), 5, "blk.0.ffn_up.weight has shape (40, 64)")


def test_a_locked_output_is_not_touched(done_10: Path, run: Run) -> None:
    before = files(done_10)
    with RunLock(done_10 / "chk-LATEST.gguf"):
        refused(resume(run, done_10), 3, "another run is writing to it", str(os.getpid()))
    assert files(done_10) == before
    load_model(done_10 / "toy.gguf")
