"""A finished run with more iterations: a new decay over them, to the bit, or as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbllama
from nbllama.checkpoint.file import load_checkpoint
from nbllama.errors import UsageError
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import log_rows, toy_chat, words

OVER = "a new decay without warm-up covers iterations 13 to 27"
KEPT = ("iter", "epoch", "loss", "lr", "grad_norm", "tokens")


def args(folder: Path, *more: str, log: str = "log.jsonl") -> list[str]:
    """A run on six chats, three iterations per epoch."""
    mine = ["--train-data", str(toy_chat(folder / "chat.jsonl")), "--chat-template", "chatml"]
    day = ["--template-date", "2026-01-02", "--lr", "1e-2", "--adam-iter", "999",
           "--keep-last", "0"]  # fmt: skip
    return words(folder, *mine, *day, "--log", str(folder / log), *more, ctx=160)


def numbers(path: Path) -> list[dict[str, Any]]:
    return [{k: row[k] for k in KEPT} for row in log_rows(path)]


@pytest.fixture
def finished(folder: Path, run: Run) -> Path:
    """The folder after four epochs, 12 iterations."""
    done = run(args(folder, "--epochs", "4", log="first.jsonl"))
    assert done.code == 0, done
    rates = [row["lr"] for row in log_rows(folder / "first.jsonl")]
    assert len(rates) == 12 and rates[-1] == 0
    return folder


def test_records_get_a_new_decay_and_resume_in_it(finished: Path, run: Run) -> None:
    first = ["--checkpoint-in", str(finished / "chk-12.gguf"), "--epochs", "5", "--save-every", "4"]
    done = run(args(finished, *first))
    assert done.code == 0, done
    assert done.out.count(OVER) == 1
    assert "warm-up 0, cosine to 0 at iteration 27" in done.out
    whole, chk = numbers(finished / "log.jsonl"), (finished / "chk-27.gguf").read_bytes()
    rates = [row["lr"] for row in whole]
    assert rates == sorted(rates, reverse=True) and 0.0098 < rates[0] < 0.01 and rates[-1] == 0
    assert rates[-2] > 0
    lora = [(finished / f"lora-{n}.gguf").read_bytes() for n in (12, 27)]
    assert lora[0] != lora[1]
    state = load_checkpoint(finished / "chk-27.gguf")
    assert (state.decay_begin, state.decay_last) == (12, 0)
    assert state.identity.settings["cos_decay_steps"] == 27
    assert b"nbllama.decay" not in (finished / "chk-12.gguf").read_bytes()

    # stopped in the middle of it
    (finished / "chk-27.gguf").unlink()
    rest = ["--checkpoint-in", str(finished / "chk-20.gguf"), "--adam-iter", "7"]
    done = run(args(finished, *rest, log="rest.jsonl"))
    assert done.code == 0 and "a new decay" not in done.out, done
    assert numbers(finished / "rest.jsonl") == whole[8:]
    assert (finished / "chk-27.gguf").read_bytes() == chk
    assert (finished / "lora-27.gguf").read_bytes() == lora[1]

    # and a third time, of few iterations, of which the last one learns too
    more = ["--checkpoint-in", str(finished / "chk-27.gguf"), "--adam-iter", "2"]
    done = run(args(finished, *more, log="third.jsonl"))
    assert done.code == 0 and "covers iterations 28 to 29" in done.out, done
    rates = [row["lr"] for row in log_rows(finished / "third.jsonl")]
    assert rates == pytest.approx([0.0075, 0.0025])


def test_the_same_from_python(finished: Path, run: Run) -> None:
    done = run(args(finished, "--checkpoint-in", "chk-12.gguf", "--epochs", "5"))
    assert done.code == 0, done
    options: dict[str, Any] = dict(
        ctx=160, batch=2, warmup=2, seed=11, threads=1, quiet=True, chat_template="chatml",
        template_date="2026-01-02", lr=1e-2,
    )  # fmt: skip
    mine = nbllama.tune(
        "toy.gguf", "chat.jsonl", **options, epochs=5, checkpoint_in="chk-12.gguf",
        checkpoint_out="py-ITERATION.gguf",
    )  # fmt: skip
    assert any(OVER in note for note in mine.notes)
    assert mine.losses == [row["loss"] for row in log_rows(finished / "log.jsonl")]
    assert (finished / "py-27.gguf").read_bytes() == (finished / "chk-27.gguf").read_bytes()
    # the options of that run repeat it
    done = run(
        ["--config", "lora-LATEST.config.yaml", "--checkpoint-out", "again-ITERATION.gguf",
         "--lora-out", "again-ITERATION.gguf.bin", "--log", ""]
    )  # fmt: skip
    assert done.code == 0 and OVER in done.out, done
    again = load_checkpoint(finished / "again-27.gguf")
    state = load_checkpoint(finished / "chk-27.gguf")
    assert again.identity.settings == state.identity.settings
    with pytest.raises(nbllama.NbllamaError, match="lr_decay_steps was 12, now 40"):
        nbllama.tune(
            "toy.gguf", "chat.jsonl", **options, epochs=5, checkpoint_in="chk-12.gguf",
            lr_decay_steps=40,
        )  # fmt: skip


def test_plain_text_goes_on_as_before(folder: Path, run: Run) -> None:
    """Its decay has a separate length: two parts have the bits of a whole run."""
    done = run(words(folder, "--adam-iter", "6"))
    assert done.code == 0, done
    whole = (folder / "chk-6.gguf").read_bytes()
    assert b"nbllama.decay" not in whole
    (folder / "chk-6.gguf").unlink()
    assert run(words(folder, "--adam-iter", "3")).code == 0
    done = run(words(folder, "--adam-iter", "3", "--checkpoint-in", str(folder / "chk-3.gguf")))
    assert done.code == 0 and "a new decay" not in done.out
    assert (folder / "chk-6.gguf").read_bytes() == whole


def test_one_iteration_learns(folder: Path, run: Run) -> None:
    done = run(args(folder, "--adam-iter", "1", "--warmup", "1"))
    assert done.code == 0, done
    (row,) = log_rows(folder / "log.jsonl")
    assert row["lr"] == pytest.approx(0.005)
    state = load_checkpoint(folder / "chk-1.gguf")
    assert any(pair.b.any() for pair in state.adapter.pairs.values())
    # another one is a new decay, not the end of this one
    more = ["--adam-iter", "1", "--warmup", "1", "--checkpoint-in", str(folder / "chk-1.gguf")]
    done = run(args(folder, *more))
    assert done.code == 0 and "covers iteration 2" in done.out, done
    assert log_rows(folder / "log.jsonl")[-1]["lr"] == pytest.approx(0.005)


def test_a_run_at_rate_0_is_refused(folder: Path, run: Run) -> None:
    zero = ["--lr-decay-steps", "1", "--lr-decay-min", "0", "--warmup", "0"]
    before = listing(folder)
    refused(run(words(folder, *zero)), 2, "the learning rate would be 0 in all 4 iterations")
    assert listing(folder) == before
    with pytest.raises(UsageError, match="would be 0 in all 4 iterations"):
        nbllama.tune(
            "toy.gguf", "text.txt", ctx=16, batch=2, adam_iter=4, warmup=0, lr_decay_steps=1,
            lr_decay_min=0, quiet=True,
        )  # fmt: skip
