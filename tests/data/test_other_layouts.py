"""Chats and preferences in the layouts of XTuner, Firefly, Gemini and OpenAI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, open_data
from nbllama.data.formats import Labelled, Pair, Style
from nbllama.errors import DataError

XTUNER = {
    "conversation": [
        {"system": "s", "input": "q1", "output": "a1"},
        {"input": "q2", "output": "a2"},
    ]
}
FIREFLY = {
    "conversation_id": 1,
    "category": "c",
    "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}],
}
GEMINI = {
    "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
    "contents": [
        {"role": "user", "parts": [{"text": "q1"}]},
        {"role": "model", "parts": [{"text": "a"}, {"text": "1"}]},
        {"role": "user", "parts": {"text": "q2"}},
        {"role": "model", "parts": [{"text": "a2"}]},
    ],
}
TWO_TURNS = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}


def opened(folder: Path, *records: Any, name: str = "x.jsonl") -> DataFile:
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return open_data(path)


def said(found: DataFile, n: int = 0) -> list[tuple[str, str]]:
    sample = found.samples[n][1]
    assert isinstance(sample, Conversation)
    return [(m["role"], m["content"]) for m in sample.messages]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize(
    ("record", "system", "read"),
    [
        (XTUNER, True, "input as user, output as assistant, conversation as messages"),
        (FIREFLY, False, "human as user, conversation as messages"),
        (GEMINI, True, "contents as messages, systemInstruction as system"),
    ],
)
def test_chats(
    tmp_path: Path, record: Any, system: bool, read: str, times: int, in_list: bool
) -> None:
    found = opened(tmp_path, *([[record] * times] if in_list else [record] * times))
    assert len(found.samples) == times
    for n in range(times):
        assert said(found, n) == [("system", "s")] * system + TWO_TURNS
    assert found.notes[0].startswith(f"read: {read}")
    assert all(name in found.read for name in read.split(", "))


@pytest.mark.parametrize("key", ["conversations", "messages", "turns", "对话"])
def test_other_names_of_the_rounds(tmp_path: Path, key: str) -> None:
    record = {key: [{"问": "q1", "答": "a1"}, {"问": "q2", "答": "a2", "score": 3}]}
    found = opened(tmp_path, record, record)
    assert [said(found, n) for n in range(2)] == [TWO_TURNS] * 2
    assert "keys of messages not used for training: score (2)" in found.notes


def test_a_list_of_records_stays_one(tmp_path: Path) -> None:
    """In the only object of a file, "conversations" can contain whole conversations."""
    found = opened(tmp_path, {"conversations": FIREFLY["conversation"]}, name="x.json")
    assert [said(found, n) for n in range(2)] == [TWO_TURNS[:2], TWO_TURNS[2:]]


@pytest.mark.parametrize(
    ("name", "more", "chats"),
    [
        ("x.jsonl", {}, 1),
        ("x.ndjson", {"version": 1}, 1),
        ("x.json", {"id": 1}, 1),
        ("x.json", {"conversation_id": 1}, 1),
        ("x.json", {"system": "s"}, 1),
        ("x.json", {"valid": []}, 2),
        ("x.json", {"version": 1}, 2),
    ],
)
@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize("names", [("input", "output"), ("question", "answer")])
def test_one_chat_or_a_list_of_records(
    tmp_path: Path, name: str, more: Any, chats: int, key: str, names: tuple[str, str]
) -> None:
    """The same line twice is always read as two chats; the only line should be read alike."""
    question, answer = names
    rounds = [{question: f"q{i}", answer: f"a{i}"} for i in (1, 2)]
    found = opened(tmp_path, more | {key: rounds}, name=name)
    assert len(found.samples) == chats
    if chats == 1:
        assert said(found) == [("system", "s")] * ("system" in more) + TWO_TURNS


@pytest.mark.parametrize("key", ["conversation", "conversations"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_instruction_and_its_input(tmp_path: Path, key: str, times: int) -> None:
    rounds = [
        {"instruction": "i1", "input": "x", "output": "a1"},
        {"instruction": "i2", "input": "", "output": "a2"},
        {"instruction": "", "input": "q3", "output": "a3"},
    ]
    found = opened(tmp_path, *[{key: rounds}] * times)
    assert len(found.samples) == times
    asked = [text for role, text in said(found) if role == "user"]
    assert asked == ["i1\n\nx", "i2", "q3"]
    found = open_data(tmp_path / "x.jsonl", style=Style(" + "))
    assert said(found)[0] == ("user", "i1 + x")


def test_an_answer_without_loss(tmp_path: Path) -> None:
    first, second = XTUNER["conversation"]
    found = opened(tmp_path, {"conversation": [first | {"output_with_loss": False}, second]})
    sample = found.samples[0][1]
    assert isinstance(sample, Conversation) and sample.silent == {2}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"conversation": [{"input": "q", "output": "a"}, {"input": "q"}]},
            'item 2 of "conversation" must have one question and one answer',
        ),
        (
            {"conversation": [{"input": "", "output": "a"}]},
            'item 1 of "conversation": the question (input) is empty; write text without '
            'a question as {"text": ...}',
        ),
        (
            {"contents": [{"role": "user", "parts": [{"text": "q"}, {"inlineData": {}}]}]},
            'message 1: "parts" must contain only {"text": ...}; write',
        ),
        (
            {"contents": [{"role": "model", "parts": [{"text": "q", "thought": True}]}]},
            'message 1: "parts" must contain only {"text": ...}; write',
        ),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_what_does_not_fit(tmp_path: Path, record: Any, reason: str, times: int) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, *[record] * times)
    assert f"line 1: {reason}" in str(caught.value)


@pytest.mark.parametrize("question", ["prompt", "input", "question"])
def test_a_prompt_and_a_response_as_messages(tmp_path: Path, question: str) -> None:
    found = opened(tmp_path, {question: [USER], "response": [GOOD]})
    assert found.format == "completion"
    assert said(found) == [("user", "q"), ("assistant", "good")]


def test_preferences_of_openai(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    given = {"messages": [USER], "tools": tools, "parallel_tool_calls": True}
    record = {"input": given, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    found = opened(tmp_path, record, record)
    assert found.format == "preference" and len(found.samples) == 2
    pair = found.samples[0][1]
    assert isinstance(pair, Pair)
    chosen, rejected = pair.chosen, pair.rejected
    assert isinstance(chosen, Conversation) and isinstance(rejected, Conversation)
    assert (chosen.messages, rejected.messages) == ([USER, GOOD], [USER, BAD])
    assert chosen.tools == tools
    assert "keys not used for training: parallel_tool_calls (2)" in found.notes


@pytest.mark.parametrize("key", ["messages", "conversations"])
@pytest.mark.parametrize("times", [1, 2])
def test_preferences_of_llama_factory(tmp_path: Path, key: str, times: int) -> None:
    """The chat is the prompt, and each side is a single turn."""
    turns: list[Any] = [{"from": "human", "value": "q"}]
    good, bad = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
    if key == "messages":
        turns, good, bad = [USER], GOOD, BAD
    record = {key: turns, "system": "s", "chosen": good, "rejected": bad}
    found = opened(tmp_path, *[record] * times)
    assert found.format == "preference" and len(found.samples) == times
    pair = found.samples[0][1]
    assert isinstance(pair, Pair) and isinstance(pair.chosen, Conversation)
    assert pair.chosen.messages == [{"role": "system", "content": "s"}, USER, GOOD]
    assert isinstance(pair.rejected, Conversation) and pair.rejected.messages[1:] == [USER, BAD]
    assert not any("not used" in note for note in found.notes)


def test_a_chat_with_its_answer_next_to_two_sides_stays_a_chat(tmp_path: Path) -> None:
    """As in the binarised UltraFeedback."""
    record = {"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert opened(tmp_path, record, record).format == "chat"


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, GOOD]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        {"instruction": "q", "input": "", "output": "good"},
    ],
)
def test_labels_of_llama_factory(tmp_path: Path, record: Any) -> None:
    found = opened(tmp_path, record | {"kto_tag": True}, record | {"kto_tag": False})
    assert found.format == "labelled"
    samples = [sample for _, sample in found.samples]
    assert all(isinstance(sample, Labelled) for sample in samples)
    assert [s.good for s in samples if isinstance(s, Labelled)] == [True, False]
    for sample in samples:
        assert isinstance(sample, Labelled) and isinstance(sample.answer, Conversation)
        assert sample.answer.messages == [USER, GOOD]


@pytest.mark.parametrize("tag", [True, False])
def test_labels_of_llama_factory_in_other_records(tmp_path: Path, tag: bool) -> None:
    found = opened(tmp_path, {"prompt": "p", "completion": "c", "kto_tag": tag})
    assert found.format == "labelled"
    turns = {"instruction": "q", "output": "a", "history": [["q", "a"]]}
    for record in (turns, {"question": "q", "answer": "a"}, {"messages": [USER]}):
        with pytest.raises(DataError, match='"kto_tag" requires a chat that ends with an answer'):
            opened(tmp_path, record | {"kto_tag": tag})


@pytest.mark.parametrize("system", ["system", "system_prompt"])
def test_messages_and_the_text_of_an_answer(tmp_path: Path, system: str) -> None:
    """As in Nemotron's data."""
    found = opened(tmp_path, {"input": [USER], "output": "a", system: "s", "used": "x"})
    assert said(found) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    assert "keys not used for training: used (1)" in found.notes


@pytest.mark.parametrize(
    ("more", "system"),
    [
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, True),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, True),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, True),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, False),
        ({"question": "p", "chosen": "a", "rejected": "b"}, True),
    ],
)
def test_the_system_message_of_a_preference(tmp_path: Path, more: Any, system: bool) -> None:
    """It is read if the sides are chats, and otherwise listed as not used."""
    found = opened(tmp_path, more | {"system": "s"})
    pair = found.samples[0][1]
    assert isinstance(pair, Pair)
    for side in (pair.chosen, pair.rejected):
        first = isinstance(side, Conversation) and side.messages[0]
        assert (first == {"role": "system", "content": "s"}) == system
    assert ("keys not used for training: system (1)" in found.notes) != system


@pytest.mark.parametrize("question", ["input", "问题", "prompt"])
def test_a_distilled_answer_and_its_thought(tmp_path: Path, question: str) -> None:
    record = {question: "q", "content": "a", "reasoning_content": "t", "repo_name": "x", "score": 1}
    found = opened(tmp_path, record, record)
    assert said(found) == [("user", "q"), ("assistant", "a")]
    sample = found.samples[0][1]
    assert isinstance(sample, Conversation) and sample.messages[1]["reasoning_content"] == "t"
    assert found.notes[0] == f"read: {question} as user, content as assistant"
    assert "keys not used for training: repo_name (2), score (2)" in found.notes


@pytest.mark.parametrize("key", ["contents", "messages", "conversations"])
@pytest.mark.parametrize("system", ["s", {"parts": [{"text": "s"}]}])
def test_other_forms_of_gemini(tmp_path: Path, key: str, system: Any) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    record = {key: GEMINI["contents"], "systemInstruction": system}
    record["tools"] = [{"functionDeclarations": [function, {"name": "g"}]}]
    found = opened(tmp_path, record)
    assert said(found) == [("system", "s"), *TWO_TURNS]
    sample = found.samples[0][1]
    assert isinstance(sample, Conversation) and sample.tools is not None
    assert [tool["function"]["name"] for tool in sample.tools] == ["f", "g"]
    assert sample.tools[0]["function"] == function


def test_parts_next_to_contents_are_not_read(tmp_path: Path) -> None:
    """As in the messages of Vercel's AI SDK."""
    parts = [{"type": "text", "text": "x"}]
    found = opened(tmp_path, {"messages": [USER | {"parts": parts}, GOOD | {"parts": parts}]})
    assert said(found) == [("user", "q"), ("assistant", "good")]


def test_an_export_of_claude(tmp_path: Path) -> None:
    turns = [
        {"uuid": "1", "sender": who, "text": text, "content": [{"type": "text", "text": text}]}
        for who, text in (("human", "q"), ("assistant", "a"))
    ]
    found = opened(tmp_path, {"uuid": "0", "name": "title", "chat_messages": turns})
    assert said(found) == [("user", "q"), ("assistant", "a")]
    assert "keys not used for training: uuid (1), name (1)" in found.notes
