"""Parts of a message's text, and thoughts next to the text or within it."""

from __future__ import annotations

from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, open_records
from nbllama.errors import DataError

Q: Any = {"role": "user", "content": "q"}
A: Any = {"role": "assistant", "content": "a"}
B = {"type": "text", "text": "b"}
MARKED = "<think>\nseven\n</think>\n\n56"


def opened(*messages: dict[str, Any]) -> DataFile:
    return open_records([{"messages": list(messages)}], "x")


def read(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    ((_, sample),) = opened(*messages).samples
    assert isinstance(sample, Conversation)
    return sample.messages


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("b", 'part 2 of "content" must be an object such as {"type": "text", "text": ...}, not t'),
        ({"text": "b"}, 'part 2 of "content" has no type; add "type": "text" if it is text'),
        (
            {"type": "image_url", "image_url": "u"},
            "has the type 'image_url'; only text can be read",
        ),
        ({"type": "tool_use", "name": "f"}, "'tool_use'; write the call under \"tool_calls\""),
        ({"type": "tool_result"}, "'tool_result'; write the result as a message with the role"),
        ({"type": "thinking"}, "'thinking'; write the thought under \"reasoning_content\""),
        ({"type": ["text"]}, "has the type '['text']'; only text can be read"),
        ({"type": "text"}, 'part 2 of "content": the key "text" is missing'),
        ({**B, "masked": True}, 'has "masked", but only whole messages can be excluded'),
        ({**B, "weight": 0}, 'has "weight", but only whole messages can be excluded from training'),
        ({**B, "train": False}, 'has "train", but only whole messages can be excluded'),
    ],
)
def test_parts_that_are_refused(part: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(Q, {**A, "content": [B, part]})
    assert "message 2: part 2 of " in str(caught.value) and reason in str(caught.value)


def test_parts_that_are_read() -> None:
    asked = [{"type": "input_text", "text": "q", "train": False}, {**B, "weight": 1}]
    answered = [{"type": "output_text", "text": "a"}, {**B, "train": True}]
    found = read({**Q, "content": asked}, {**A, "content": answered})
    assert [message["content"] for message in found] == ["qb", "ab"]


@pytest.mark.parametrize(
    "written",
    ["seven", "<think>seven</think>", "\n<think>\nseven\n</think>\n", "<think>\nseven",
     "seven\n</think>", "[THINK]seven[/THINK]"],
)  # fmt: skip
def test_marks_around_a_thought_are_removed(written: str) -> None:
    answer = read(Q, {**A, "reasoning_content": written})[1]
    assert answer == {**A, **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "seven")}


@pytest.mark.parametrize(
    "words", ["use <think> or </think> here", "<think> opens it", "[thought] x"]
)
def test_words_about_marks_stay_in_a_thought(words: str) -> None:
    assert read(Q, {**A, "thinking": words})[1]["thinking"] == words


def test_a_thought_in_the_text_and_in_a_key() -> None:
    """An equal thought is read once; a template could write both."""
    answer = {**A, "content": MARKED}
    for content in (MARKED, "seven\n</think>\n\n56", "<think>\nseven"):
        answer = {**A, "content": content}
        assert read(Q, {**answer, "reasoning_content": " seven\n"})[1] == answer
        with pytest.raises(DataError, match="message 2: the message contains two thoughts, one in"):
            opened(Q, {**answer, "reasoning": "eight"})


@pytest.mark.parametrize(
    "written",
    ["<think>\n\n</think>\n\n56", "<think></think>56", "\n</think>\n\n56", "[THINK][/THINK]56"],
)
def test_an_empty_thought_in_the_text_next_to_a_thought(written: str) -> None:
    """Exports of hybrid models contain both; a template would write both."""
    answer = read(Q, {**A, "content": written, "thinking": "seven"})[1]
    assert (answer["content"], answer["thinking"]) == ("56", "seven")
    assert read(Q, {**A, "content": written})[1]["content"] == written
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": written, "reasoning": "x"}]
    ((_, sample),) = open_records([{"conversations": turns}], "x").samples
    assert isinstance(sample, Conversation) and sample.messages[1]["content"] == "56"


@pytest.mark.parametrize(
    "words",
    ["use </think> here", "`</think>` closes it", "<think> opens it", "56 <think>x</think>"],
)
def test_words_about_marks_next_to_a_thought(words: str) -> None:
    answer = read(Q, {**A, "content": words, "thinking": "seven"})[1]
    assert (answer["content"], answer["thinking"]) == (words, "seven")


def test_text_after_a_thought_under_a_key() -> None:
    with pytest.raises(
        DataError, match="message 2: the thought contains text after </think>; move"
    ):
        opened(Q, {**A, "reasoning": MARKED})
