"""Chinese names of columns, keys and speakers, and unusual spellings of any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Continuation, Conversation, open_data
from nbllama.data.folding import CHINESE_COLUMNS, CHINESE_SPEAKERS, canonical, fold, speaker
from nbllama.data.formats import Pair
from nbllama.data.formats.sharegpt import ROLES
from nbllama.errors import DataError
from tests.data.test_names import ASKED, opened, said


def wide(text: str) -> str:
    """The text in full-width characters."""
    return "".join(chr(ord(c) + 0xFEE0) for c in text)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("问题", "回答"), ("问", "答"), ("提问", "答案"), ("指令", "输出"), ("输入", "输出"),
        ("提示", "回复"), ("用户", "助手"), ("問題", "回答"), ("問", "答"), ("提問", "答覆"),
        ("輸入", "輸出"), ("提示詞", "回覆"), ("用戶", "助手"), ("题目", "参考答案"),
        ("用户问题", "机器人回复"), ("客户", "客服"), ("用户", "客服"),
        ("问题", "Answer"), ("Question", "回答"), ("问题 ", " 回答" + wide(":")),
        ("\ufeff问题", "回答\u200b"), (wide("Q"), wide("A")),
        (wide("Question:"), "ANSWER:"), ("　问题　", "回答"),
    ],
)  # fmt: skip
def test_a_question_and_its_answer(tmp_path: Path, question: str, answer: str) -> None:
    found = opened(tmp_path, {question: "q", answer: "a", "id": 4})
    assert (found.format, said(found)) == ("alpaca", ASKED)
    for ending, delimiter in (("csv", ","), ("tsv", "\t"), ("csv", ";"), ("txt", ",")):
        path = tmp_path / f"t.{ending}"
        path.write_text(f"\ufeff{answer}{delimiter}{question}\na{delimiter}q\n", "utf-8")
        assert said(open_data(path)) == ASKED
    plain = opened(tmp_path, {question: "q", answer: "a"}, data_format="completion")
    assert plain.samples == [(1, Continuation("q", "a"))]


def test_what_belongs_to_them(tmp_path: Path) -> None:
    record = {"系统": "s", "指令": "q", "输入": "c", "输出": "a", "来源": "x"}
    found = opened(tmp_path, record)
    assert said(found) == [("system", "s"), ("user", "q\n\nc"), ("assistant", "a")]
    assert found.notes == (
        "read: 指令 as instruction, 输出 as output, 输入 as input, 系统 as system (with the chat "
        "template)",
        "keys not used for training: 来源 (1)",
    )
    found = opened(tmp_path, {"问题": "q", "上下文": "c", "回答": "a"})
    assert said(found) == [("user", "q\n\nc"), ("assistant", "a")]
    found = opened(tmp_path, {"提示": "p", "补全": "c"})
    assert found.samples == [(1, Continuation("p", "c"))] and found.format == "completion"
    assert found.notes == ("read: 提示 as prompt, 补全 as completion (concatenated as is)",)
    assert opened(tmp_path, {"文本": "t"}).samples == [(1, Continuation("", "t"))]


def test_the_line_about_all_keys(tmp_path: Path) -> None:
    found = opened(tmp_path, {"instruction": "q", "input": "", "output": "a"})
    assert found.read == "read: instruction, output (with the chat template)"
    found = opened(
        tmp_path, {"问题": "q", "答案": "a"}, columns={"prompt": "问题", "completion": "答案"}
    )
    assert found.read == "read: 问题 as prompt, 答案 as completion (concatenated as is)"
    assert found.notes == ()
    found = opened(
        tmp_path, {"messages": [{"角色": "用户", "内容": "q"}, {"角色": "助手", "内容": "a"}]}
    )
    assert found.read == "read: messages, 角色 as role, 内容 as content"


@pytest.mark.parametrize(
    "turns",
    [
        [{"角色": "用户", "内容": "q"}, {"角色": "助手", "内容": "a"}],
        [{"角色": "用戶", "內容": "q"}, {"角色": "助理", "內容": "a"}],
        [{"role": "用户", "content": "q"}, {"role": "模型", "content": "a"}],
        [{"role": "user", "内容": "q"}, {"role": wide("AI"), "内容": "a"}],
        [{"from": "用户", "value": "q"}, {"from": "助手" + wide(":"), "value": "a"}],
        [{"来自": "人类", "值": "q"}, {"来自": "机器人", "值": "a"}],
        [{"说话人": "Human", "文本": "q"}, {"说话人": "GPT", "文本": "a"}],
    ],
)
@pytest.mark.parametrize("key", ["messages", "conversations", "对话", "消息"])
def test_speakers_and_chats(tmp_path: Path, turns: list[Any], key: str) -> None:
    assert said(opened(tmp_path, {key: turns})) == ASKED
    assert said(opened(tmp_path, turns)) == ASKED
    role = next(iter(turns[0]))
    system = {role: "系统", list(turns[0])[1]: "s"}
    assert said(opened(tmp_path, {key: [system, *turns]})) == [("system", "s"), *ASKED]
    assert said(opened(tmp_path, {"系统提示": "s", key: turns})) == [("system", "s"), *ASKED]


def test_roles_are_reported(tmp_path: Path) -> None:
    turns = [{"role": "用户", "content": "q"}, {"role": "助手", "content": "a"}]
    assert opened(tmp_path, {"messages": turns}).notes == (
        "roles: 用户 as user, 助手 as assistant",
    )
    turns = [{"from": "用户", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert opened(tmp_path, {"conversations": turns}).notes == ("roles: 用户 as user",)
    turns = [{"role": "旁白", "content": "n"}, {"role": "assistant", "content": "a"}]
    found = opened(tmp_path, {"messages": turns})
    assert said(found)[0] == ("旁白", "n")
    assert found.notes == ("unknown roles, passed to the chat template unchanged: 旁白 (1)",)
    with pytest.raises(DataError, match="'旁白', not one of system, human"):
        opened(tmp_path, {"conversations": [{"from": "旁白", "value": "n"}]})


@pytest.mark.parametrize(
    ("record", "typed"),
    [
        ({"问题": "q", "提问": "p", "回答": "a"}, "prompt=问题,completion=回答"),
        ({"问题": "q", "question": "p", "answer": "a"}, "prompt=问题,completion=answer"),
        ({"问题": "q", "答案": "b", "参考答案": "a"}, "prompt=问题,completion=答案"),
        ({"文本": "t", "问题": "q", "回答": "a"}, "prompt=问题,completion=回答"),
        ({"文本": "t", "问题": "q", "回答": "a"}, "text=文本"),
        ({"Instruction": "q", "指令": "q", "输出": "a"}, "instruction=Instruction,output=输出"),
        ({"Question": "q", "question ": "r", "a": "a"}, "prompt=Question,completion=a"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(
    tmp_path: Path, record: dict[str, str], typed: str
) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl, line 1: ") as caught:
        opened(tmp_path, record)
    assert f"--data-columns {typed}" in str(caught.value)
    columns = dict(pair.split("=") for pair in typed.split(","))
    assert len(opened(tmp_path, record, columns=columns).samples) == 1


def test_the_prompt_of_a_preference(tmp_path: Path) -> None:
    sides = {"chosen": "yes", "rejected": "no"}
    (sample,) = opened(tmp_path, {"提示": "p", **sides}).samples
    assert sample[1][:2] == (Continuation("p", "yes"), Continuation("p", "no"))
    ((_, pair),) = opened(tmp_path, {"Question": "q", "背景": "c", **sides}).samples
    assert isinstance(pair, Pair) and isinstance(pair.chosen, Conversation)
    assert pair.chosen.messages[0] == {"role": "user", "content": "q\n\nc"}
    for record in ({"用户": "p"}, {"提示": "p", "指令": "q"}):
        with pytest.raises(DataError, match=r'is "(用户|提示)" the prompt\?'):
            opened(tmp_path, record | {"chosen": "so yes", "rejected": "so no"})


def test_columns_that_are_spelled_differently(tmp_path: Path) -> None:
    columns = {"prompt": "提问内容", "completion": "回复内容"}
    found = opened(tmp_path, {"提问内容 ": "q", "\ufeff回复内容" + wide(":"): "a"}, columns=columns)
    assert found.samples == [(1, Continuation("q", "a"))]
    (tmp_path / "t.txt").write_text("提问内容 ,回复内容\nq,a\n", "utf-8")
    assert open_data(tmp_path / "t.txt", columns=columns).samples == [(2, Continuation("q", "a"))]
    with pytest.raises(DataError, match="several keys have similar names"):
        opened(tmp_path, {"提问内容 ": "q", " 提问内容": "r", "回复内容": "a"}, columns=columns)


def test_two_keys_of_the_same_meaning(tmp_path: Path) -> None:
    for record, key in (
        ({"问题": "q", "上下文": "c", "背景": "d", "答": "a"}, "input"),
        ({"系统": "q", "系统提示": "c", "对话": [{"角色": "用户", "内容": "q"}]}, "system"),
    ):
        with pytest.raises(DataError, match=f'line 1: it is unclear which key is "{key}"'):
            opened(tmp_path, record)


def test_a_message_with_two_texts(tmp_path: Path) -> None:
    turns = [{"说话人": "用户", "发言人": "x", "内容": "q"}, {"from": "gpt", "value": "a"}]
    with pytest.raises(DataError, match="说话人, 发言人 of a message have the same mean"):
        opened(tmp_path, {"对话": turns})


def test_every_known_name_is_written_as_it_is_looked_up() -> None:
    for name, english in {**CHINESE_COLUMNS, **CHINESE_SPEAKERS}.items():
        assert fold(name) == name and english.isascii()
    assert {speaker(name) for name in CHINESE_SPEAKERS} <= set(ROLES)
    assert canonical("问题" * 40) == "问题" * 40
