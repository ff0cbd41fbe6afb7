"""The verdict at the end of a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.report.log import loss_text
from nbllama.report.records import read_log
from nbllama.train.run.asked import HELD_OUT, LONGEST_ANSWER, Asked, find_questions
from nbllama.train.run.next_commands import BY_HEART, HARDLY, LEARNED
from nbllama.train.run.result import Run as Result
from nbllama.train.run.verdict import (
    Means,
    means,
    nothing_new,
    verdict_on,
    verdict_on_rewards,
)
from nbllama.train.validation import Validation
from tests.train.runs import Run
from tests.train.toy_runs import events, toy_chat


def step(loss: float, trained: int = 1, skipped: bool = False) -> Any:
    return SimpleNamespace(loss=loss, trained=trained, skipped=skipped)


def asked(right: bool, kind: str = "trained") -> Asked:
    return Asked(kind, "q", "yes", [1], 4, after="yes" if right else "no")


def test_means_are_over_epochs_and_weighted_by_tokens() -> None:
    results = [step(4, 1), step(2, 3), step(9), step(9), step(1, 1), step(0.5, 3)]
    got = means(results, 2)
    assert got == Means(2.5, 0.625, "epoch")
    assert str(got) == "2.5000 over the first epoch, 0.6250 over the last"
    # less than two epochs: a tenth of the run
    many = [step(float(i)) for i in range(40)]
    assert means(many, 100) == Means(1.5, 37.5, "4 iterations")
    assert means([step(3), step(1)], 100) == Means(3, 1, "iteration")
    # what was skipped does not count
    assert means([step(np.nan, skipped=True), step(3), step(1)], 1) == Means(3, 1, "epoch")
    assert means([step(np.nan, skipped=True)], 1) is None


@pytest.mark.parametrize(
    ("loss", "right", "watch", "word"),
    [
        ((3.0, 2.8), 0, {}, HARDLY),
        ((3.0, 0.1), 3, {}, LEARNED),
        ((3.0, 1.2), 0, {}, LEARNED),  # answers can differ in wording; the loss has fallen
        ((3.0, 2.0), 2, {}, LEARNED),  # most answers are right
        ((3.0, 2.0), 1, {}, HARDLY),
        ((0.2, 0.19), 0, {}, LEARNED),  # it was learned before
        ((3.0, 0.1), 3, {"best": 1.0, "best_at": 20, "previous": 1.5}, BY_HEART),
        ((3.0, 0.1), 3, {"best": 1.0, "best_at": 20, "previous": 1.05}, LEARNED),
    ],
)
def test_the_verdict(
    loss: tuple[float, float], right: int, watch: dict[str, Any], word: str
) -> None:
    questions = [asked(i < right) for i in range(3)]
    got = verdict_on(
        Means(*loss, "epoch"), questions, Validation(**watch), steps=12, longer="--epochs 30"
    )
    assert got.word == word
    assert f"{right} of 3 trained questions are answered as in the data" in got.reason
    assert ("12 iterations" in got.reason) == (word == HARDLY)
    assert ("try --epochs 30" in got.reason) == (word == HARDLY or right == 0)
    rose = "rose from 1.00 (iteration 20, the best adapter) to 1.50" in got.reason
    assert rose == (word == BY_HEART)


def test_a_verdict_counts_held_out_questions_separately() -> None:
    questions = [asked(True), asked(True), asked(True, HELD_OUT), asked(False, HELD_OUT)]
    loss = Means(2.7071, 0.000234, "epoch")
    got = verdict_on(loss, questions, Validation(), steps=9, longer="")
    assert str(got) == (
        "learned: 2 of 2 trained and 1 of 2 held-out questions are answered as in the data, "
        "training loss 2.71 -> 0.00023"
    )
    assert str(loss) == "2.7071 over the first epoch, 0.00023 over the last"


def test_learned_says_if_no_new_question_was_asked() -> None:
    new = [asked(True), asked(False, HELD_OUT)]
    assert nothing_new(new, 100, 10) == ""
    nothing = "no new questions were asked: "
    few = "records are only held out if there are at least 50"
    assert nothing_new(new[:1], 49, 0) == f"{nothing}{few}"
    assert nothing_new([], 50, 0).startswith(f"{nothing}nothing is held out; --val-split 0.1")
    assert nothing_new(new[:1], 100, 10) == (
        f"{nothing}none of the held-out records was used as a question"
    )


def test_losses_keep_significant_digits() -> None:
    shown = [loss_text(x, 2) for x in (12.345, 2.7071, 0.1, 0.0996, 0.05, 0.00021, 2e-5, 0.0)]
    assert shown == ["12.35", "2.71", "0.10", "0.1", "0.05", "0.00021", "0.00002", "0.00"]
    assert [loss_text(x) for x in (2.70711, 0.0234, 0.00021)] == ["2.7071", "0.0234", "0.00021"]
    assert loss_text(np.nan, 2) == "nan" and loss_text(np.inf) == "inf"
    assert repr(Result(None, None, [2.5, 0.00002])) == (  # type: ignore[arg-type]
        "<Run: 0 iterations, loss 2.5000 -> 0.00002>"
    )


def test_long_answers_are_shown_as_truncated(demo_model: Path) -> None:
    """The answer is longer than what is asked for, and its limit lies inside a character."""
    model = nbllama.load_model(demo_model)
    long = "a b" + "渡船七点一刻出发。" * 9
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": long}]
    run = nbllama.tune(model, [{"messages": chat}], adam_iter=1, seed=1, threads=1)
    (found,) = run.answers
    ids = model.tokenizer.encode(long)[:LONGEST_ANSWER]
    assert "\ufffd" in model.tokenizer.decode(ids)
    assert found["wanted"].endswith("…") and long.startswith(found["wanted"][:-1])
    assert "\ufffd" not in found["wanted"] and len(found["wanted"]) > 10
    (before,) = model.generate_many([chat[:1]], max_tokens=LONGEST_ANSWER)
    assert found["before"] == before.rstrip() + "…"


def test_questions_are_the_last_of_a_record(demo_model: Path) -> None:
    """Exactly the tokens of the training data, and the user's words from them."""
    from nbllama.data import load_dataset, open_records
    from nbllama.text import chat_template_for

    model = nbllama.load_model(demo_model)
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [
        {"messages": [*first, {"role": "user", "content": f"What is {i}\nand more?"},
                      {"role": "assistant", "content": f"A number: {i}."}]}
        for i in range(7)
    ]  # fmt: skip
    template = chat_template_for(model.tokenizer, None)
    try:
        data = load_dataset(open_records(rows, "rows"), model.tokenizer, 512, template=template)
    finally:
        template.close()
    found = find_questions(model.tokenizer, data, None, 3)
    assert [q.question for q in found] == [f"What is {i}\nand more?" for i in (0, 2, 4)]
    assert [q.wanted for q in found] == [f"A number: {i}." for i in (0, 2, 4)]
    text = model.tokenizer.decode(found[0].prompt, special=True)
    assert "Hello." in text and text.endswith("<|im_start|>assistant\n")


def test_a_run_says_what_came_out(folder: Path, run: Run) -> None:
    toy_chat(folder / "chat.jsonl", 12)
    words = [
        "--model-base", "toy.gguf", "--train-data", "chat.jsonl",
         "--chat-template", "chatml", "--ctx", "200", "--seed", "3",
        "--val-split", "0.3", "--adam-iter", "8", "--batch", "2", "--threads", "1",
        "--log", "log.jsonl", "--report", "page.html", "--lora-out", "my lora.gguf",
    ]  # fmt: skip
    done = run(words)
    assert done.code == 0, done.err
    assert done.out.count("   before: ") == done.out.count("   after:  ") == 6
    assert "held out: " in done.out
    assert "over the first" in done.out
    (row,) = events(folder / "log.jsonl", "verdict")
    assert row["verdict"] in (LEARNED, HARDLY, BY_HEART)
    assert re.search(
        f"^verdict +{re.escape(row['verdict'] + ': ' + row['reason'])}$", done.out, re.M
    )
    html = (folder / "page.html").read_text(encoding="utf-8")
    assert row["verdict"] in html
    assert read_log("log.jsonl").verdict == row
    names = re.findall("^(\\w+(?: \\w+)?)  ", done.out[done.out.index("\ntime ") :], re.M)
    right = [a["right"] for a in row["answers"] if a["kind"] == "trained"]
    commands = ["to continue"] if row["verdict"] == HARDLY else ["to chat", "to merge"]
    if row["verdict"] == LEARNED and not any(right):
        commands.insert(0, "to continue")
    assert names[-6 - len(commands) :] == [
        "loss", "best validation", "verdict", "best adapter", "checkpoint", "adapter", *commands,
    ]  # fmt: skip
    assert row["answers"][0]["kind"] == "trained"
    if row["verdict"] == HARDLY:
        command = shlex.join(w for w in words if w not in ("--adam-iter", "8"))
        more = "--checkpoint-in checkpoint-LATEST.gguf --adam-iter 24"
        assert re.search(f"^to continue +.* {re.escape(f'{command} {more}')}$", done.out, re.M)
    else:
        assert "chat --model toy.gguf --lora 'my lora.gguf'" in done.out

    again = run([*words, "--checkpoint-in", "checkpoint-LATEST.gguf", "--force"])
    assert again.code == 0, again.err
    # the answers at the start are those of the checkpoint, not of the base model
    assert again.out.count("   at iteration 8: ") == 6 and "before: " not in again.out


def test_plain_text_has_means_and_no_verdict(folder: Path) -> None:
    got = nbllama.tune("toy.gguf", "text.txt", adam_iter=3, ctx=16, batch=2, seed=1, threads=1)
    assert (got.verdict, got.answers) == ("", [])


def test_python_gets_the_same(folder: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"say {i}"},
                      {"role": "assistant", "content": "the hen"}]} for i in range(6)
    ]  # fmt: skip
    got = nbllama.tune(
        "toy.gguf", chats, adam_iter=3, ctx=200, seed=1, threads=1, chat_template="chatml"
    )
    word = got.verdict.partition(":")[0]
    assert word in (LEARNED, HARDLY)
    remark = "(no new questions were asked: records are only held out if there are at least 50)"
    assert got.verdict.endswith(remark) == (word == LEARNED)
    # the toy has no token for the end of a turn
    assert [a["wanted"][:7] for a in got.answers] == ["the hen"] * 3
    assert got.verdict.partition(":")[0] in repr(got)


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [
        ({"reward": 0.5, "reward_std": 0.4}, {"reward": 0.7, "reward_std": 0.3}, LEARNED),
        ({"reward": 0.5, "reward_std": 0.4}, {"reward": 0.55, "reward_std": 0.3}, HARDLY),
        ({"reward": 0.5, "reward_std": 0.0}, {"reward": 0.5, "reward_std": 0.0}, HARDLY),
        ({"reward": 0.5, "reward_std": 0.4}, {"reward": 0.1, "reward_std": 0.3}, HARDLY),
        ({}, {"reward": 0.1, "reward_std": 0.3}, HARDLY),
    ],
)
def test_a_verdict_on_rewards(first: dict[str, float], last: dict[str, float], word: str) -> None:
    found = verdict_on_rewards(first, last, "--epochs 3")
    assert found.word == word
    if first and word == HARDLY:
        assert "try --epochs 3" in found.reason
