"""Spellings and places of keys, roles, tools and system messages that are read as meant."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, load_dataset, open_data, open_records
from nbllama.data.formats.prompt import read as read_prompt
from nbllama.data.formats.record import Pair, Style
from nbllama.errors import DataError
from nbllama.text import CHATML, ChatTemplate, Tokenizer

Q: Any = {"role": "user", "content": "q"}
A: Any = {"role": "assistant", "content": "a"}
S: Any = {"role": "system", "content": "s"}
CALL = {"name": "f", "arguments": {"n": 4}}
READ_CALL = {"type": "function", "function": CALL}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def opened(record: dict[str, Any]) -> DataFile:
    return open_records([record], "x")


def chat(record: dict[str, Any]) -> Conversation:
    ((_, sample),) = opened(record).samples
    assert isinstance(sample, Conversation)
    return sample


def refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(record)
    assert reason in str(caught.value)


def test_tools_under_two_keys() -> None:
    framed = {"type": "function", "function": {"name": "f"}}
    same = {"messages": [Q, A], "tools": [framed], "functions": [{"name": "f"}]}
    assert chat(same).tools == [framed]
    assert chat({**same, "tools": " "}).tools == [framed]
    refused({**same, "functions": [{"name": "g"}]}, '"tools" and "functions" contain different')


@pytest.mark.parametrize("key", ["input_schema", "inputSchema"])
def test_the_parameters_of_tools_of_other_apis(key: str) -> None:
    tool = {"name": "f", "description": "d", key: {"type": "object"}}
    read = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    for tools in ([tool], json.dumps([tool])):
        record = {"messages": [Q, A], "tools": tools}
        assert chat(record).tools == [{"type": "function", "function": read}]
        assert opened(record).notes == (f"read: {key} as parameters",)
    framed = {"type": "function", "function": {**tool, "parameters": {"type": "object"}}}
    assert chat({"messages": [Q, A], "tools": [framed]}).tools == [
        {"type": "function", "function": read}
    ]
    refused(
        {"messages": [Q, A], "tools": [{**tool, "parameters": {"type": "string"}}]},
        "the tool 'f' has different parameters under several keys",
    )


def test_tools_of_an_instruction_are_not_listed_as_unused() -> None:
    record = {"instruction": "q", "output": "a", "tools": [{"name": "f"}]}
    assert chat(record).tools and opened(record).notes == ()


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{**Q, "content": "q\0"}, A]},
        {"messages": [Q, {**A, "content": [{"type": "text", "text": "\0"}]}]},
        {"conversations": [TURNS[0], {"from": "gpt", "value": "a\0"}]},
        {"prompt": "q\0", "completion": "a"},
        {"text": "a\0"},
    ],
)
def test_nul_characters(record: dict[str, Any]) -> None:
    refused(record, "contains a NUL character (U+0000); remove it")


@pytest.mark.parametrize(
    ("key", "turns", "first"),
    [
        ("messages", [Q, A], S),
        ("conversations", [Q, A], S),
        ("conversations", TURNS, {"from": "system", "value": "s"}),
    ],
)
def test_a_system_message_next_to_a_chat(key: str, turns: list[Any], first: Any) -> None:
    for system in ("s", [{"type": "text", "text": "s", "cache_control": {"type": "e"}}]):
        found = chat({key: turns, "system": system})
        assert found == Conversation([S, Q, A], n_first=1)
    assert chat({key: [first, *turns], "system": " s\n"}).messages == [S, Q, A]
    refused({key: [first, *turns], "system": "t"}, '"system" differs from the first message')
    refused(
        {key: turns, "system": [{"type": "image"}]}, "part 1 of \"system\" has the type 'image'"
    )


def test_a_system_message_next_to_a_prompt() -> None:
    found = read_prompt({"messages": [Q], "system": "s"}, Style())
    assert isinstance(found, Conversation) and found.messages[:2] == [S, Q]
    assert found.n_first == 1


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Tool-Call"])
@pytest.mark.parametrize("result", ["tool", "tool_response", "function_response", "observation"])
def test_calls_and_results_by_role(role: str, result: str) -> None:
    if role == "Tool-Call" and result == "observation":
        return
    turns = [Q, {"role": role, "content": json.dumps(CALL)}, {"role": result, "content": "7"}, A]
    record = {"messages": turns}
    asked, call, answer, _ = chat(record).messages
    assert asked == Q and call["role"] == "assistant" and answer == {"role": "tool", "content": "7"}
    (function,) = call["tool_calls"]
    assert function["function"] == CALL
    (note,) = opened(record).notes
    assert f"{role} as assistant" in note and "unknown" not in note
    two = {"role": role, "content": json.dumps([CALL, CALL])}
    assert len(chat({"messages": [Q, two]}).messages[1]["tool_calls"]) == 2
    silent = chat({"messages": [Q, {**turns[1], "weight": 0}, turns[2], A]}).silent
    assert silent == {1}


CALLING: Any = {"role": "tool_call", "content": json.dumps(CALL)}
RESULT = {"role": "tool_response", "content": "7"}


def test_calls_by_role_in_succession(bpe: Tokenizer) -> None:
    """ms-swift writes parallel calls as several messages; a template must get one answer."""
    record = {"messages": [Q, CALLING, CALLING, CALLING, RESULT, RESULT, RESULT, A]}
    messages = chat(record).messages
    assert [m["role"] for m in messages] == ["user", "assistant", *["tool"] * 3, "assistant"]
    assert messages[1]["tool_calls"] == [READ_CALL] * 3
    silent = {**CALLING, "loss": False}
    assert chat({"messages": [Q, silent, silent, RESULT, {**A, "weight": 0}, Q, A]}).silent == {
        1,
        3,
    }
    apart = {"messages": [Q, CALLING, RESULT, CALLING, RESULT, A]}
    assert len(chat(apart).messages) == 6
    turn = {"from": "function_call", "value": json.dumps(CALL)}
    result = {"from": "observation", "value": "7"}
    turns = {"conversations": [TURNS[0], turn, turn, result, result, TURNS[1]]}
    two = {**messages[1], "tool_calls": [READ_CALL] * 2}
    assert chat(turns).messages == [Q, two, *messages[3:]]
    with ChatTemplate(CHATML) as template:
        notes = load_dataset(opened(record), bpe, 256, template=template).notes
    assert sum("2 tool calls were joined to the call in the message dir" in n for n in notes) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**CALLING, "content": "I call f."}, "only calls can be joined, without a text or a th"),
        ({**CALLING, "thinking": "t"}, "only calls can be joined, without a text or a thought"),
        ({**CALLING, "loss": 0}, "but only one of the two is excluded from training"),
    ],
)
def test_calls_by_role_that_cannot_be_joined(message: dict[str, Any], reason: str) -> None:
    refused({"messages": [Q, CALLING, message, RESULT, A]}, "message 3: ")
    refused({"messages": [Q, CALLING, message, RESULT, A]}, reason)


def test_numbers_of_messages_after_joined_calls(bpe: Tokenizer) -> None:
    hint = "; messages with consecutive calls are counted as one"
    turns = [Q, CALLING, CALLING, RESULT]
    refused({"messages": [*turns, {**A, "content": " "}]}, f"message 4: the answer is empty{hint}")
    leaves_out = (
        "{% set messages = messages if add_generation_prompt else messages[:-1] %}" + CHATML
    )
    with ChatTemplate(leaves_out) as template, pytest.raises(DataError) as caught:
        load_dataset(opened({"messages": [*turns, A]}), bpe, 256, template=template)
    assert "message 4" in str(caught.value) and str(caught.value).endswith(hint)


def test_calls_of_sharegpt_under_another_name() -> None:
    turns = [TURNS[0], {"from": "tool_call", "value": json.dumps(CALL)},
             {"from": "tool_response", "value": "7"}, TURNS[1]]  # fmt: skip
    found = chat({"conversations": turns}).messages
    assert found[1]["tool_calls"] == [READ_CALL] and found[2] == {"role": "tool", "content": "7"}


def test_the_role_observation_stays_in_a_chat_without_calls() -> None:
    """A template can support it."""
    found = opened({"messages": [{"role": "observation", "content": "7"}, A]})
    assert found.notes == ("unknown roles, passed to the chat template unchanged: observation (1)",)


@pytest.mark.parametrize(
    "key", ["Tool_Calls", "toolCalls", "tool_call", "toolCall", "function-call"]
)
def test_other_spellings_of_calls(key: str) -> None:
    value: Any = [CALL] if key.lower().endswith("calls") else CALL
    record = {"messages": [Q, {**A, key: value}]}
    assert chat(record).messages[1]["tool_calls"] == [READ_CALL]
    assert opened(record).notes[0].startswith(f"read: {key} as ")


def test_other_spellings_of_masks_and_thoughts() -> None:
    upper = {"Role": "assistant", "Content": "a", "Weight": 0, "Reasoning_Content": "t"}
    found = chat({"messages": [Q, upper, Q, A]})
    assert found.silent == {1} and found.messages[1]["reasoning_content"] == "t"
    assert chat({"messages": [Q, {**A, "Loss": False}, Q, A]}).silent == {1}
    turn = {**TURNS[1], "Masked": True}
    assert chat({"conversations": [TURNS[0], turn, *TURNS]}).silent == {1}
    refused({"messages": [Q, {**A, "Loss": 0, "loss": 1}]}, 'several keys that mean "loss"')
    refused({"messages": [Q, {**A, "tool_call": CALL, "toolCall": CALL}]}, '"function_call"')


def test_unread_keys_of_parts_and_calls_are_counted() -> None:
    part = {"type": "text", "text": "q", "cache_control": {"type": "e"}, "image": None}
    call = {"function": {**CALL, "result": 7}, "extra_content": {"g": 1}}
    record = {"messages": [{**Q, "content": [part]}, {**A, "tool_calls": [call]}]}
    (note,) = opened(record).notes
    for words in ("cache_control in content (1)", "result in tool_calls (1)", "extra_content in t"):
        assert words in note
    assert "image" not in note


def test_chats_in_the_cells_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def one(**cells: str) -> Any:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, cells)
            writer.writeheader()
            writer.writerow(cells)
        ((_, sample),) = open_data(path).samples
        return sample

    text = json.dumps([{"role": "human", "content": "q"}, A])
    assert one(messages=text) == Conversation([Q, A])
    assert one(Messages=text, id="1") == Conversation([Q, A])
    assert one(conversations=json.dumps(TURNS)) == Conversation([Q, A])
    assert one(messages=json.dumps(TURNS)) == Conversation([Q, A])
    found = one(prompt=json.dumps([Q]), completion=json.dumps([A]))
    assert found == Conversation([Q, A])
    pair = one(chosen=json.dumps([Q, A]), rejected=json.dumps([Q, {**A, "content": "b"}]))
    assert isinstance(pair, Pair) and pair.chosen == Conversation([Q, A])
    answer = json.dumps([Q, A])
    assert one(prompt="Write a chat.", completion=answer) == ("Write a chat.", answer)
    for cells, reason in (
        ({"messages": str([Q, A])}, 'line 2: "messages" is text, but not a list of messages'),
        ({"messages": '[{"role": "user", "role": "user"}]'}, '"role" appears twice in an object'),
        ({"messages": "hi"}, '"messages" must be a list of messages, not text'),
        ({"prompt": str([Q]), "completion": "a"}, 'line 2: "prompt" looks like a list of messages'),
        ({"chosen": str([Q, A]), "rejected": "b"}, 'line 2: "chosen" looks like a list of mess'),
    ):
        with pytest.raises(DataError) as caught:
            one(**cells)
        assert reason in str(caught.value)
