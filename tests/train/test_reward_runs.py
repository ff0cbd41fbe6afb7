"""Runs of the program on rewards: log, resume, failures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbllama
from tests.train.runs import Run, copy_of, refused
from tests.train.toy_runs import events, log_rows, words

REWARDS = """
def vowels(prompt, answer, record):
    return sum(c in "aeiou" for c in answer) / 4

def sometimes(prompt, answer, record):
    if record["number"] % 3 == 0:
        raise RuntimeError("not this one")
    return len(answer)

def never(prompt, answer, record):
    return "good"
"""


def asked(folder: Path, n: int = 6, **more: Any) -> Path:
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    rows = [
        {"prompt": [{"role": "user", "content": f"say {i}"}], "number": i, "answer": "the hen"}
        | more
        for i in range(n)
    ]
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(folder: Path, *more: str, reward: str = "rewards.py:vowels") -> list[str]:
    if ".py" in reward:
        reward = f"{folder}/{reward}"
    return words(
        folder, "--train-data", str(folder / "asked.jsonl"), "--chat-template", "chatml",
        "--template-date", "2026-01-02", "--lr", "1e-2", "--objective", "grpo", "--reward", reward,
        "--group-size", "4", "--max-answer", "6", *more, ctx=99,
    )  # fmt: skip


def test_a_run_reports_its_rewards(folder: Path, run: Run) -> None:
    asked(folder)
    log = folder / "log.jsonl"
    report = ["--report", str(folder / "page.html")]
    done = run(options(folder, "--log", str(log), "--adam-iter", "5", "--eval-every", "2", *report))
    assert done.code == 0, done
    rows = log_rows(log)
    assert len(rows) == 5
    for row in rows:
        assert {"reward", "reward_std", "kl", "answer_tokens", "cut", "same"} <= row.keys()
        assert row["answers_per_s"] > 0 and row["reward_errors"] == 0
        assert 1 <= row["answer_tokens"] <= 6
    assert rows[0]["kl"] == 0  # the adapter starts as the base
    assert rows[-1]["kl"] > 0
    said = [e for e in events(log, "evaluation") if e["samples"]]
    assert [e["iter"] for e in said] == [2, 4, 5]
    for e in said:
        assert len(e["samples"]) == 2
        assert all(s["prompt"].startswith("say ") and float(s["reward"]) >= 0 for s in e["samples"])
    assert "(reward " in done.out and " reward=" in done.out and " kl=" in done.out
    assert "4 per prompt, at most 6 tokens" in done.out
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert '"answers_per_s"' in page and '"reward"' in page


def test_a_run_that_is_continued_has_the_same_bits(folder: Path, run: Run) -> None:
    asked(folder)
    other = copy_of(folder, "other")
    asked(other)
    own = ["--warmup", "1", "--lr-decay-steps", "6"]
    assert run(options(folder, *own, "--adam-iter", "6")).code == 0
    assert run(options(other, *own, "--adam-iter", "4")).code == 0
    checkpoint = ["--checkpoint-in", str(other / "chk-LATEST.gguf")]
    done = run(options(other, *own, *checkpoint, "--adam-iter", "2"))
    assert done.code == 0, done
    whole, parts = (f / "lora-6.gguf" for f in (folder, other))
    assert whole.read_bytes() == parts.read_bytes()
    # another reward, or another group, is another run
    wrong = options(other, *own, *checkpoint, "--adam-iter", "2", reward="rewards.py:sometimes")
    refused(run(wrong), 5, "reward was vowels")
    refused(run(options(other, *own, *checkpoint, "--group-size", "3")), 5, "group_size was 4")


def test_rewards_that_fail_are_counted(folder: Path, run: Run) -> None:
    asked(folder)
    log = folder / "log.jsonl"
    few = ["--batch", "6", "--adam-iter", "2", "--log", str(log)]
    done = run(options(folder, *few, reward="rewards.py:sometimes"))
    assert done.code == 0, done
    assert [row["reward_errors"] for row in log_rows(log)] == [8, 8]
    lines = [line for line in done.out.splitlines() if "rewards failed" in line]
    assert len(lines) == 2 and "RuntimeError: not this one" in lines[0]
    assert "8 of 24 rewards failed" in lines[0]
    line = refused(run(options(folder, *few, reward="rewards.py:never")), 1, "returned text")
    assert "the first 8 rewards of this run all failed" in line


def test_the_forecast_has_the_drawing(folder: Path, run: Run) -> None:
    asked(folder)
    done = run(options(folder, "--dry-run"))
    assert done.code == 0, done
    assert "forecast" in done.out and "memory" in done.out and "per iteration" in done.out


@pytest.mark.parametrize(
    ("more", "reward", "parts"),
    [
        ([], "", ("--reward", "the reward is missing")),
        ([], "exakt", ("--reward exakt", "use FILE.py:FUNCTION")),
        ([], "gone.py:f", ("gone.py:f", "No such file")),
        ([], "rewards.py:nothing", ("the file has no function nothing",)),
        (["--val-split", "0.2"], "exact", ("--val-split", "--objective grpo")),
        (["--packing"], "exact", ("--packing", "--objective grpo")),
        (["--sft-weight", "1"], "exact", ("--sft-weight", "does not apply")),
        (["--objective", "dpo"], "exact", ("--reward is for --objective grpo",)),
        (["--reference", "none", "--beta", "0.1"], "exact", ("--reference none",)),
        (["--reference", "start"], "exact", ("--lora-in",)),
        (["--group-size", "1"], "exact", ("--group-size", "2")),
        (["--temperature", "0"], "exact", ("--temperature", "above 0")),
        ([], "sql", ("asked.jsonl, line 1", '"database"')),
        (["--ctx", "12"], "exact", ("asked.jsonl", "do not fit in the context of 12")),
    ],
)
def test_refusals(folder: Path, run: Run, more: list[str], reward: str, parts: Any) -> None:
    asked(folder)
    refused(run(options(folder, *more, reward=reward)), 2, *parts)


def test_records_without_a_prompt(folder: Path, run: Run) -> None:
    path = asked(folder, 2)
    rows = path.read_text(encoding="utf-8")
    path.write_text(rows + '{"number": 1, "answer": "x"}\n', encoding="utf-8")
    refused(run(options(folder)), 2, "asked.jsonl, line 3: no prompt was found", "number, answer")
    done = run(options(folder, "--skip-bad", "--adam-iter", "1"))
    assert done.code == 0 and "1 of 3 records are bad and were skipped" in done.out
    text = ["--train-data", str(folder / "text.txt")]
    refused(run(options(folder, *text)), 2, "text.txt contains plain text", "records with a prompt")


def test_from_python_with_records_and_texts(folder: Path) -> None:
    rows = [{"prompt": f"the hen {i} ", "answer": "eats"} for i in range(4)]
    seen: list[dict[str, float]] = []
    done = nbllama.tune(
        "toy.gguf", rows, objective="grpo", reward="regex:[aeiou]", ctx=64, batch=2, adam_iter=2,
        group_size=3, max_answer=4, beta=0, lr=1e-3, seed=1, threads=1, quiet=True,
        on_step=lambda record: seen.append(dict(record.measures)),
    )  # fmt: skip
    assert len(done.losses) == 2
    assert all(0 <= numbers["reward"] <= 1 and "kl" not in numbers for numbers in seen)
