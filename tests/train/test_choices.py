"""Choices of a run: optimisers, dropout, layers, the scale; continued to the bit, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbllama.adapter.file import load_adapter
from nbllama.checkpoint.file import load_checkpoint
from nbllama.model.passes import load_model
from tests.train.runs import Run, copy_of, logged
from tests.train.toy_runs import log_rows

CHOICES = {
    "sgd": ["--optimizer", "sgd", "--lr", "0.05"],
    "lion": ["--optimizer", "lion", "--lr-schedule", "wsd"],
    "lion, dropout": ["--optimizer", "lion", "--lora-dropout", "0.3", "--grad-acc", "2"],
    "adamw": ["--lora-dropout", "0.2", "--loraplus-lr-ratio", "8", "--rslora", "--lr-schedule",
              "linear", "--lora-layers", "last:1", "--rank-tok-embd", "0"],
}  # fmt: skip


@pytest.mark.parametrize("how", CHOICES)
def test_a_continued_run_has_the_bits_of_a_whole_one(folder: Path, run: Run, how: str) -> None:
    more = [*CHOICES[how], "--save-every", "3", "--lr-decay-steps", "6"]
    found = []
    for name, parts in (("whole", (6,)), ("parts", (3, 3))):
        there = copy_of(folder, name)
        for part in parts:
            again = ["--checkpoint-in", str(there / "chk-LATEST.gguf"), *more]
            done = run(logged(there, part, *again))
            assert done.code == 0, done
        found.append((there / "chk-6.gguf").read_bytes())
        rows = log_rows(there / "log.jsonl")
        assert len({row["loss"] for row in rows}) == 6
    assert found[0] == found[1]
    state = load_checkpoint(folder / "whole" / "chk-6.gguf")
    assert bool(state.v) == (how == "adamw")
    assert all(m.any() for m in state.m.values())


def test_another_choice_does_not_continue_a_checkpoint(folder: Path, run: Run) -> None:
    assert run(logged(folder, 2)).code == 0
    saved = ["--checkpoint-in", str(folder / "chk-2.gguf")]
    for more, told in [
        (["--optimizer", "lion"], "optimizer was adamw, now lion"),
        (["--lora-dropout", "0.5"], "lora_dropout was 0.0, now 0.5"),
        (["--lora-layers", "0"], "lora_layers was all, now 0"),
        (["--rslora"], "rslora was False, now True"),
    ]:
        done = run(logged(folder, 2, *saved, *more))
        assert done.code == 5 and told in done.err, done


def test_only_the_chosen_layers_carry_pairs(folder: Path, run: Run) -> None:
    done = run(logged(folder, 2, "--lora-layers", "1", "--rank-out", "0", "--rank-tok-embd", "0"))
    assert done.code == 0 and "blocks 1" in done.out
    model = load_model(folder / "toy.gguf")
    adapter = load_adapter(folder / "lora-2.gguf", model.hp, model.shapes)
    assert {name.split(".")[1] for name in adapter.pairs} == {"1"} and len(adapter.pairs) == 7
    (folder / "lora-2.gguf").rename(folder / "first.gguf")
    start = ["--lora-in", str(folder / "first.gguf")]
    done = run(logged(folder, 1, *start))
    assert done.code == 0 and "blocks 1" in done.out, done
    done = run(logged(folder, 1, *start, "--lora-layers", "last:2"))
    assert done.code == 2 and "--lora-layers last:2: the adapter" in done.err


def test_rslora_writes_the_scale_that_was_trained(folder: Path, run: Run) -> None:
    assert run(logged(folder, 1, "--rslora", "--lora-r", "4", "--lora-alpha", "6")).code == 0
    model = load_model(folder / "toy.gguf")
    adapter = load_adapter(folder / "lora-1.gguf", model.hp, model.shapes)
    assert adapter.scale == pytest.approx(6 / 4**0.5)
