"""Runs on records: chats, prompts with answers, packed, through a template."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples.toy_models import make_llama
from nbllama.checkpoint.file import load_checkpoint
from tests.train.runs import Run, refused
from tests.train.toy_runs import log_rows, toy_chat, words


def test_chat_through_the_template(folder: Path, run: Run) -> None:
    make_llama(folder / "toy.gguf", tokenizer="bpe")
    toy_chat(folder / "chat.jsonl")
    more = ["--train-data", str(folder / "chat.jsonl"), "--epochs", "2", "--adam-iter", "99"]
    done = run(words(folder, *more, "--batch", "4", "--log", "log.jsonl", ctx=200))
    assert done.code == 0, done
    assert re.search(r"(?m)^data +records, format chat$", done.out)
    assert re.search(r"(?m)^samples +6$", done.out)
    rows = log_rows(folder / "log.jsonl")
    assert [row["epoch"] for row in rows] == [0, 0, 1, 1]  # 4 and then 2 samples, twice
    assert load_checkpoint(folder / "chk-LATEST.gguf").sample_count == 12


def test_a_folder_of_prompts_packed_and_continued(folder: Path, run: Run) -> None:
    """With --packing a batch is 2 x 24 tokens; a run in two parts has the bits of a single run."""
    data = folder / "data"
    data.mkdir()
    rows = [{"question": f"say {i}:", "answer": "the hen " * (1 + i % 5)} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data / "train.jsonl").write_text(text + "{broken\n", encoding="utf-8")
    more = ["--train-data", str(data), "--data-columns", "prompt=question,completion=answer"]
    more += ["--packing", "--skip-bad", "--epochs", "2", "--adam-iter", "9999", "--save-every", "3"]
    more += ["--keep-last", "0"]
    done = run(words(folder, *more, "--log", "log.jsonl", ctx=24))
    assert done.code == 0, done
    assert "1 of 21 records are bad and were skipped; first: line 21: invalid JSON" in done.out
    assert re.search(r"(?m)^data +records, format completion$", done.out)
    whole = log_rows(folder / "log.jsonl")
    assert all(row["computed_tokens"] <= 48 for row in whole) and {
        row["epoch"] for row in whole
    } == {0, 1}
    n = len(whole)
    assert 4 < n < 40  # samples do share batches
    last = load_checkpoint(folder / f"chk-{n}.gguf")
    assert last.sample_count == 40 and last.identity.settings["packing"] is True

    more += ["--checkpoint-in", str(folder / "chk-3.gguf"), "--cos-decay-steps", "1000"]
    before = (folder / f"lora-{n}.gguf").read_bytes()
    (folder / f"lora-{n}.gguf").unlink()
    more[more.index("--adam-iter") + 1] = str(n - 3)
    done = run(words(folder, *more, "--log", "more.jsonl", ctx=24))
    refused(done, 5, "lr_decay_steps was")
    done = run(words(folder, *more[:-2], "--log", "more.jsonl", ctx=24))
    assert done.code == 0, done
    assert (folder / f"lora-{n}.gguf").read_bytes() == before
    refused(
        run(words(folder, *more[:-2], "--no-packing", ctx=24)), 5, "packing was True, now False"
    )


def test_the_day_of_a_template_is_kept(folder: Path, run: Run) -> None:
    """A template that writes the date: a run continued on another day has the same tokens."""
    make_llama(folder / "toy.gguf", tokenizer="bpe")
    toy_chat(folder / "chat.jsonl")
    (folder / "dated.jinja").write_text(
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|im_start|>{{ m['content'] }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    more = ["--train-data", str(folder / "chat.jsonl"), "--chat-template", "dated.jinja"]
    day = ["--template-date", "2024-02-29"]
    assert run(words(folder, *more, *day, ctx=99)).code == 0
    first = load_checkpoint(folder / "chk-LATEST.gguf")
    assert first.identity.settings["template_date"] == "2024-02-29"
    more += ["--checkpoint-in", str(folder / "chk-LATEST.gguf")]
    done = run(words(folder, *more, ctx=99))
    assert done.code == 0, done
    assert load_checkpoint(folder / "chk-8.gguf").identity.data == first.identity.data
    other = run(words(folder, *more, "--template-date", "2024-03-01", ctx=99))
    refused(
        other, 5, "the training data are different", "template_date was 2024-02-29, now 2024-03"
    )


@pytest.mark.parametrize(
    ("content", "more", "part"),
    [
        ("plain text", ["--packing"], "--packing is for records, but "),
        ("plain text", ["--skip-bad"], "--skip-bad is for records, but "),
        ("plain text", ["--on-long", "skip"], "--on-long is for records, but "),
        ('{"text": "the"}', ["--no-separate-with-bos"], "--separate-with-bos is for plain text"),
        ("plain text", ["--train-on-prompt"], "--train-on-prompt is for records, but "),
        ('{"text": "the"}', ["--sample-start", "x"], "--sample-start is for plain text, but "),
        ('{"text": "the"}', ["--data-format", "nix"], "--data-format: 'nix' is not allowed"),
        ('{"text": "the"}', ["--template-date", "2024-02-30"], "use a date as YYYY-MM-DD"),
        ('{"text": "the"}', ["--on-long", "refuse", "--ctx", "1"], "line 1: 2 tokens exceed"),
    ],
)
def test_options_that_do_not_go_with_the_data(
    folder: Path, run: Run, content: str, more: list[str], part: str
) -> None:
    (folder / "data").write_text(content, encoding="utf-8")
    refused(run(words(folder, "--train-data", str(folder / "data"), *more)), 2, part)
