"""The plan of a run on records: derived from the data, given, or kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.options.finetune.table import Options, parse
from nbllama.train.run.plan import TABLE, held_out_share, rate_of, with_plan
from tests.train.runs import Run, refused
from tests.train.toy_runs import events, log_rows, same_bits, toy_chat


def planned(words: str = "", n: int = 30, kind: str = "chat", **more: object) -> Options:
    """The options of a command line with the plan for `n` records."""
    given = parse(["--model-base", "m", *words.split()])
    return with_plan(given, kind, n, **more)  # type: ignore[arg-type]


def shortened(folder: Path, *more: str) -> list[str]:
    """A run on `folder`'s chats with as few options as possible."""
    return [
        "--model-base", "toy.gguf", "--train-data", "chat.jsonl",
         "--chat-template", "chatml", "--ctx", "200", "--lora-r", "2",
        "--seed", "3", "--threads", "1", "--log", "log.jsonl", *more,
    ]  # fmt: skip


def test_the_fewer_records_the_more_passes_in_smaller_batches() -> None:
    batches = [row.batch for row in TABLE]
    epochs = [row.epochs for row in TABLE]
    assert batches == sorted(batches)
    assert epochs == sorted(epochs, reverse=True)
    for n in (6, 30, 100, 300, 3000):
        row = next(row for row in TABLE if n <= row.records)
        assert (planned(n=n).batch, planned(n=n).epochs) == (row.batch, row.epochs)


def test_what_is_held_out() -> None:
    assert [held_out_share(n) for n in (6, 49, 50, 1000, 4000)] == [0.0, 0.0, 0.1, 0.1, 0.025]
    got = planned(n=60)
    assert (got.val_split, got.early_stop) == (0.1, 4)
    for words in ("--epochs 3", "--adam-iter 20", "--val-split 0"):
        got = planned(words, n=60)
        assert (got.val_split, got.early_stop) == (0.0, 0), words
    assert planned(n=60, validated=True).val_split == 0.0  # there are validation data already
    assert planned("--early-stop 2", n=60).early_stop == 2


def test_every_option_wins_over_the_plan() -> None:
    got = planned("--batch 7 --lr 3e-5 --epochs 2 --keep-last 0 --answers 9 --val-split 0.25")
    assert (got.batch, got.adam_alpha, got.epochs, got.adam_iter) == (7, 3e-5, 2, None)
    assert (got.keep_last, got.answers, got.val_split) == (0, 9, 0.25)


def test_plain_text_and_compat_have_no_plan() -> None:
    for words in ("", "--compat"):
        got = planned(words, kind="raw", n=1000)
        assert (got.batch, got.adam_alpha, got.epochs, got.adam_iter) == (8, 1e-3, None, None)
        assert (got.val_split, got.early_stop, got.keep_last, got.answers) == (0.0, 0, 0, 0)


def test_the_rate_follows_the_width() -> None:
    assert rate_of(576) == rate_of(64) == 1e-3
    assert rate_of(4096) == 2e-4
    assert 2e-4 < rate_of(2048) < 1e-3
    assert planned("--optimizer lion").adam_alpha == pytest.approx(1e-4)


def test_a_run_that_was_stopped_is_finished_by_the_same_command(folder: Path, run: Run) -> None:
    toy_chat(folder / "chat.jsonl", 60)
    whole = folder / "whole"
    whole.mkdir()
    outputs = ["--checkpoint-out", "c-ITERATION.gguf", "--lora-out", "l-ITERATION.gguf"]
    there = ["--checkpoint-out", "whole/c-ITERATION.gguf", "--lora-out", "whole/l-ITERATION.gguf"]
    done = run(shortened(folder, *there))
    assert done.code == 0, done.err
    n_iter = len(log_rows(folder / "log.jsonl"))
    assert f"{n_iter} iterations of 4 x 1 samples" in re.sub(" +", " ", done.out)
    assert "54, 6 for validation" in done.out
    # of the first ten iterations, as a kill after the save leaves them
    names = [p.name for p in whole.glob("c-*.gguf")]
    kept = sorted(int(n[2:-5]) for n in names if "LATEST" not in n)
    assert len(kept) == 2 and kept[1] == n_iter  # --keep-last 2
    assert len(list(whole.glob("l-[0-9]*.gguf"))) == 2
    (whole / f"c-{kept[0]}.gguf").rename(folder / "c-LATEST.gguf")
    (folder / "log.jsonl").unlink()
    done = run(shortened(folder, *outputs))
    assert done.code == 0, done.err
    assert [r["iter"] for r in log_rows(folder / "log.jsonl")] == list(
        range(kept[0] + 1, n_iter + 1)
    )
    a, b = (load_checkpoint(p) for p in (whole / "c-LATEST.gguf", folder / "c-LATEST.gguf"))
    assert same_bits(a.adapter.parameters(), b.adapter.parameters())
    # and now there is nothing left
    refused(run(shortened(folder, *outputs)), 2, "is complete", "--epochs", "--force")


def test_a_short_run_does_not_validate_each_time(folder: Path, run: Run) -> None:
    toy_chat(folder / "chat.jsonl", 12)
    words = shortened(folder, "--adam-iter", "12", "--val-split", "0.2", "--batch", "2")
    assert run(words).code == 0
    at = [row["iter"] for row in events(folder / "log.jsonl", "evaluation")]
    assert at == [0, 5, 10, 12]


def test_answers_change_no_bit(folder: Path, run: Run) -> None:
    toy_chat(folder / "chat.jsonl", 8)
    bits = []
    for n in ("0", "3"):
        words = shortened(folder, "--adam-iter", "4", "--answers", n, "--lora-out", f"{n}.gguf")
        assert run([*words, "--checkpoint-in=", "--checkpoint-out="]).code == 0
        bits.append((folder / f"{n}.gguf").read_bytes())
    assert bits[0] == bits[1]
    verdicts = events(folder / "log.jsonl", "verdict")
    assert [len(row["answers"]) for row in verdicts] == [0, 3]
    text = json.dumps(verdicts[1]["answers"])
    assert "say " in text and "the hen" in text
