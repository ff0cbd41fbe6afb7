"""Blocks of micro-batches: what a step's gradient is, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.model.passes import Model
from nbllama.train.trainer import Trainer
from tests.train.runs import Run, refused
from tests.train.toy_runs import (
    file_bits,
    log_rows,
    random_rows,
    same_bits,
    state_of,
    toy_adapter,
    toy_model,
    trainer,
    words,
)  # fmt: skip

NO_FILES = ["--checkpoint-out", "", "--lora-out", ""]
LENGTHS = [5, 9, 3, 12, 7, 8, 4, 6, 11, 10]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("toy"))


def made(model: Model, **options: object) -> Trainer:
    rows = random_rows(model, LENGTHS)
    return trainer(model, toy_adapter(model), rows, **({"grad_acc": 5, "batch": 2} | options))


def gradient(model: Model, micro: list[int], trained: int) -> dict[str, np.ndarray]:
    """The gradient of these micro-batches of the first step, computed from what the trainer has."""
    t = made(model)
    taken = t.feed.take(t.position, t.batch, t.grad_acc)
    t.bound.zero_grads()
    for m in micro:
        t.model.forward(t.bound, t.acts, taken.batches[m])
        t.objective.loss(t, taken.batches[m], weight=1.0 / trained, gradient=True)
        t.model.backward(t.bound, t.acts, taken.batches[m])
    return {name: g.copy() for name, g in t.gradients.items()}


def test_the_order_of_the_sum(model: Model) -> None:
    t = made(model, block=2)
    found = t.evaluate()
    wanted = gradient(model, [0, 1], found.trained)
    for micro in ([2, 3], [4]):
        part = gradient(model, micro, found.trained)
        wanted = {name: wanted[name] + part[name] for name in wanted}
    assert same_bits(t.gradients, wanted)
    whole = made(model)
    assert whole.evaluate().loss == pytest.approx(found.loss, rel=1e-12)
    assert not same_bits(whole.gradients, wanted)  # the order matters, so this test can see it


@pytest.mark.parametrize("block", [8, 16])
def test_one_block_is_a_run_without_blocks(model: Model, block: int) -> None:
    a, b = made(model), made(model, block=block)
    for _ in range(3):
        assert a.step().loss == b.step().loss
    assert same_bits(state_of(a).arrays, state_of(b).arrays)


def test_a_loss_that_is_not_finite_ends_the_sum(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = made(model, block=1)
    before = state_of(t)
    calls = []
    real: Any = t.objective.loss

    def loss(*args: object, **more: object) -> float:
        calls.append(1)
        return float("nan") if len(calls) == 2 else real(*args, **more)

    monkeypatch.setattr(t.objective, "loss", loss)
    assert t.step().skipped
    assert len(calls) == 2
    after = state_of(t)
    assert same_bits(before.arrays, after.arrays)


def test_threads_and_a_resume_do_not_change_bits(folder: Path, run: Run) -> None:
    same = ["--grad-acc", "5", "--cos-decay-steps", "4"]
    base = ["--block", "2", "--log", "log.jsonl", *same]
    assert run(words(folder, *base)).code == 0
    whole = file_bits(folder / "chk-4.gguf")
    losses = [row["loss"] for row in log_rows(folder / "log.jsonl")]
    assert run(words(folder, *base, "--threads", "2")).code == 0
    assert file_bits(folder / "chk-4.gguf") == whole
    assert [row["loss"] for row in log_rows(folder / "log.jsonl")][4:] == losses
    assert run(words(folder, *base, "--adam-iter", "2")).code == 0
    shutil.copy(folder / "chk-2.gguf", folder / "half.gguf")
    for file in (*folder.glob("chk-*"), *folder.glob("lora-*")):
        file.unlink()
    # the block size comes from the checkpoint
    more = [*same, "--checkpoint-in", "half.gguf", "--adam-iter", "2"]
    done = run(words(folder, *more))
    assert done.code == 0, done
    assert file_bits(folder / "chk-4.gguf") == whole
    other = run(words(folder, *more, *NO_FILES, "--block", "4"))
    refused(other, 5, "block was 2, now 4")


def test_a_block_that_is_no_power_of_two(folder: Path, run: Run) -> None:
    refused(run(words(folder, "--block", "6")), 2, "--block 6", "4 or 8")


def test_a_checkpoint_without_blocks_is_not_continued_with_them(folder: Path, run: Run) -> None:
    assert run(words(folder, "--grad-acc", "2")).code == 0
    more = ["--grad-acc", "2", "--checkpoint-in", "chk-4.gguf", "--block", "1"]
    refused(run(words(folder, *more, *NO_FILES)), 5, "block was 0, now 1")
