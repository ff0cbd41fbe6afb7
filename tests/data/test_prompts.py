"""Prompts without answers: the formats, their ids, and what the reward gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.data.counts import Counts
from nbllama.data.formats import Conversation, Style
from nbllama.data.formats.prompt import STAND_IN, read
from nbllama.data.names import prompt_names
from nbllama.errors import DataError

ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}


def messages(record: dict[str, Any]) -> list[tuple[str, str]]:
    found = read(record, Style())
    assert isinstance(found, Conversation)
    return [(m["role"], m["content"]) for m in found.messages]


def test_forms_of_a_prompt() -> None:
    end = ("assistant", STAND_IN)
    assert read({"prompt": "once "}, Style()) == "once "
    assert messages({"prompt": [ASK]}) == [("user", "q"), end]
    assert messages({"messages": [ASK]}) == [("user", "q"), end]
    assert messages({"messages": [ASK, SAY]}) == [("user", "q"), end]  # SAY is for the reward
    both = [("user", "q"), ("assistant", "a"), ("user", "q"), end]
    assert messages({"messages": [ASK, SAY, ASK]}) == both
    assert messages({"question": "q", "sql": 1}) == [("user", "q"), end]
    more = {"instruction": "q", "input": "b", "system": "s", "output": "not read"}
    assert messages(more) == [("system", "s"), ("user", "q\n\nb"), end]


def test_only_the_stand_in_counts_as_an_answer() -> None:
    found = read({"messages": [ASK, SAY, ASK]}, Style())
    assert isinstance(found, Conversation)
    assert found.silent == {1}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"answer": "a"}, "no prompt was found"),
        ({"prompt": " "}, "is empty"),
        ({"prompt": 3}, "must be text"),
        ({"prompt": [ASK, SAY]}, "ends with an answer"),
        ({"messages": [SAY]}, "only an answer"),
        ({"messages": [ASK, SAY, SAY]}, "ends with an answer"),
        ({"prompt": [{"role": "user"}]}, "message 1"),
    ],
)
def test_what_is_no_prompt(record: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(record, Style())


def test_chinese_names() -> None:
    counts = Counts.empty()
    record = prompt_names({"问题": "q", "上下文": "b", "系统提示": "s", "标准答案": "x"}, counts)
    assert messages(record)[:2] == [("system", "s"), ("user", "q\n\nb")]
    assert counts.notes(chats=True)[0].startswith("read: 问题 as question, 上下文 as input, ")
    assert read(prompt_names({"提示": "p", "上下文": "b"}, counts), Style()) == "p"
    chat = [{"角色": "用户", "内容": "q"}]
    assert messages(prompt_names({"对话": chat}, counts))[:1] == [("user", "q")]
    with pytest.raises(DataError, match=r"prompt \(提示, 问题\); pass --data-columns prompt=提示"):
        prompt_names({"问题": "q", "提示": "p"}, counts)


def test_a_prompt_has_the_ids_that_a_server_gives_the_model(tmp_path: Path) -> None:
    from nbllama.data import prompt_ids
    from nbllama.data.asking import PromptReader
    from nbllama.text import chat_template_for, find_layout
    from tests.train.toy_runs import toy_model

    tokenizer = toy_model(tmp_path).tokenizer
    path = tmp_path / "asked.jsonl"
    rows = [{"prompt": [ASK, SAY, ASK], "more": 1}, {"prompt": "once ", "more": 2}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reader = PromptReader(tokenizer, columns={}, style=Style())
    data, good = reader.open(path)
    with chat_template_for(tokenizer, find_layout("chatml").source) as template:
        made = reader.load(data, good, template, n_ctx=200, group=3, most=5)
        wanted = prompt_ids(tokenizer, template, [ASK, SAY, ASK])
    first, second = made.questions
    assert first.ids.tolist() == wanted
    assert first.prompt == [ASK, SAY, ASK] and first.record == rows[0] and first.chat
    assert second.ids.tolist() == tokenizer.encode("once ", add_special=True)
    assert second.prompt == "once " and second.place == "line 2" and not second.chat
    batch = made.batch([1])
    assert batch.n_sequences == 3 and batch.n_trained == 15
    n = len(second.ids)
    assert np.array_equal(batch.tokens[:n], second.ids)
    assert (batch.targets[: n - 1] == -1).all() and (batch.targets[n - 1 : n + 4] >= 0).all()
    changed = replace(made, questions=(first, second._replace(record={"more": 3})))
    assert changed.fingerprint != made.fingerprint
