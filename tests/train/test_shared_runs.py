"""Runs whose samples share prefixes: bits, resuming, choices, log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from examples.toy_archs import MODELS
from nbllama.checkpoint.file import load_checkpoint
from nbllama.data import Batch
from nbllama.data.shared import share
from nbllama.model.passes import Model
from nbllama.train.forecast import check_memory
from nbllama.train.trainer import Trainer
from tests.data.test_shared import samples
from tests.train.runs import Run, copy_of, refused
from tests.train.toy_runs import (
    log_rows,
    same_bits,
    state_of,
    toy_adapter,
    toy_model,
    trainer,
    words,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"))


def make(model: Model, share_prompts: bool = True, **options: object) -> Trainer:
    """A trainer on ten samples with one prompt, three per batch."""
    rng = np.random.default_rng(4)
    prompt = rng.integers(0, 90, 20).tolist()
    rows = [prompt + rng.integers(0, 90, 1 + i % 5).tolist() for i in range(10)]
    data = samples(rows, 64)
    return trainer(
        model, toy_adapter(model), data, batch=3, share_prompts=share_prompts, validation=data,
        **options,
    )  # fmt: skip


def test_loss_and_validation_have_the_same_bits(model: Model) -> None:
    plain, shared = make(model, False), make(model)
    assert shared.shares and not plain.shares
    assert plain.validation_loss() == shared.validation_loss()
    a, b = plain.evaluate(), shared.evaluate()
    assert a.loss == b.loss and a.tokens == b.tokens == a.computed
    assert b.computed < a.tokens / 2
    for name, g in plain.gradients.items():
        np.testing.assert_allclose(
            shared.gradients[name], g, atol=2e-5 * float(np.linalg.norm(g)), rtol=0
        )


def test_less_memory_is_taken_and_forecast(model: Model) -> None:
    plain, shared = make(model, False), make(model)
    assert shared.acts.nbytes < 0.6 * plain.acts.nbytes
    assert check_memory(shared, 1).activations[False] == shared.acts.nbytes
    while shared.position.epoch < 1:  # every batch fits
        shared.step()


def test_accumulated_steps_and_a_new_trainer_in_mid_epoch(model: Model) -> None:
    whole = make(model, grad_acc=2)
    for _ in range(4):
        whole.step()
    first = make(model, grad_acc=2)
    for _ in range(3):
        first.step()
    again = make(model, grad_acc=2, iteration=first.iteration, position=first.position)
    for name, p in again.adapter.parameters().items():
        p[...] = first.adapter.parameters()[name]
    again.bound.refresh()
    again.opt.restore(first.opt.m, first.opt.v, first.iteration)
    assert again.position.next_sample
    again.step()
    assert same_bits(state_of(whole).arrays, state_of(again).arrays)


def test_dropout_turns_it_off(model: Model) -> None:
    """Every sample has separate masks, so their tokens are no longer the same."""
    t = make(model, dropout=0.25)
    assert not t.shares and t.limits.computed == t.limits.tokens
    found = t.evaluate()
    assert found.computed == found.tokens
    assert same_bits(t.gradients, _gradients(make(model, False, dropout=0.25)))


def _gradients(t: Trainer) -> dict[str, np.ndarray]:
    t.evaluate()
    return t.gradients


def test_a_batch_in_which_nothing_is_shared_is_left_as_it_is() -> None:
    rows = [(np.arange(i, i + 9, dtype=np.int32), np.ones(9, np.int32)) for i in (1, 20, 40)]
    batch = Batch.from_rows(rows)
    assert share(batch) is batch


def records(folder: Path) -> list[str]:
    """Options for records with one long prompt."""
    rows = [
        {"prompt": "the hen and her rat eat on thin reed: " + str(i), "completion": " you hate it"}
        for i in range(14)
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["--train-data", str(path), "--save-every", "2", "--batch", "4", "--no-packing"]


def test_runs_log_resume_and_switch(folder: Path, run: Run) -> None:
    more = [*records(folder), "--log", "log.jsonl", "--adam-iter", "4", "--cos-decay-steps", "4"]
    there = copy_of(folder, "parts")
    done = run(words(folder, *more, ctx=99))
    assert done.code == 0 and "computed, each shared prefix only once" in done.out, done
    rows = log_rows(folder / "log.jsonl")
    assert all(0 < row["computed_tokens"] < 0.7 * row["tokens"] for row in rows)

    parts = ["--adam-iter", "2", "--train-data", more[1]]
    for again in ([], ["--checkpoint-in", str(there / "chk-LATEST.gguf")]):
        done = run(words(there, *more, *parts, *again, ctx=99))
        assert done.code == 0, done
    assert (there / "lora-4.gguf").read_bytes() == (folder / "lora-4.gguf").read_bytes()
    state = load_checkpoint(there / "chk-4.gguf")
    assert state.identity.settings["share_prompts"] is True

    off = [*more, "--no-share-prompts", "--log", "off.jsonl"]
    assert run(words(folder, *off, ctx=99)).code == 0
    plain = log_rows(folder / "off.jsonl")
    assert plain[0]["loss"] == rows[0]["loss"] and plain[0]["tokens"] == rows[0]["tokens"]
    assert all(row["computed_tokens"] == row["tokens"] for row in plain)
    # a run continues with its choice, unless an option changes it
    on = ["--checkpoint-in", str(folder / "chk-4.gguf"), "--adam-iter", "5"]
    for how, expected in (((), False), (("--share-prompts",), True)):
        done = run(words(folder, *more, *on, *how, "--log", f"on{expected}.jsonl", ctx=99))
        assert done.code == 0, done
        row = log_rows(folder / f"on{expected}.jsonl")[0]
        assert (row["computed_tokens"] < row["tokens"]) == expected


def test_packing_keeps_its_rule(folder: Path, run: Run) -> None:
    more = [*records(folder), "--packing", "--batch", "1"]
    assert run(words(folder, *more, "--log", "log.jsonl", ctx=99)).code == 0
    rows = log_rows(folder / "log.jsonl")
    assert rows[0]["tokens"] > 99 >= rows[0]["computed_tokens"]
    saved = ["--checkpoint-in", str(folder / "chk-2.gguf")]
    refused(
        run(words(folder, *more, *saved, "--no-share-prompts", ctx=99)), 5,
        "share_prompts was True, now False",
    )  # fmt: skip


def test_with_dropout_it_is_off_or_refused(folder: Path, run: Run) -> None:
    more = [*records(folder), "--lora-dropout", "0.2"]
    refused(run(words(folder, *more, "--share-prompts", ctx=99)), 2, "its own dropout masks")
    done = run(words(folder, *more, "--log", "log.jsonl", ctx=99))
    assert done.code == 0, done
    assert all(row["computed_tokens"] == row["tokens"] for row in log_rows(folder / "log.jsonl"))


@pytest.mark.parametrize("name", ["lfm2, 350M to 2.6B", "qwen35, 0.8B and 2B"])
def test_models_with_states_say_that_they_share_nothing(name: str, folder: Path, run: Run) -> None:
    MODELS[name].make(folder / "toy.gguf")
    done = run(words(folder, *records(folder), "--dry-run", ctx=99))
    arch = name.partition(",")[0]
    assert done.code == 0, done
    assert f"prefixes are not shared, because {arch} blocks carry a state" in done.out
    refused(run(words(folder, *records(folder), "--share-prompts", ctx=99)), 2, "carry a state")
