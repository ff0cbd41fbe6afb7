"""The kinds of records, and a choice of records that shows them."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.cli.spread import Choice, spread
from nbllama.data import Continuation, Conversation, open_records
from nbllama.data.formats import Labelled, Pair
from nbllama.data.kinds import Kind, kind_of_sample, script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Who keeps the lighthouse?", "Latin letters"),
        ("灯塔由谁看守? OK", "Chinese characters"),
        ("灯塔 is the word for a lighthouse", "Latin letters"),
        ("灯台は誰が守っていますか", "Japanese characters"),
        ("등대는 누가 지키나요", "Hangul letters"),
        ("Кто хранит маяк?", "Cyrillic letters"),
        ("من يحرس المنارة", "Arabic letters"),
        ("12 + 3", ""),
        ("", ""),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def kind(*messages: tuple[str, str], **more: object) -> Kind:
    turns = [{"role": role, "content": content} for role, content in messages]
    turns[-1] |= {key: more.pop(key) for key in list(more) if key.startswith("reason")}  # type: ignore
    (sample,) = open_records([{"messages": turns, **more}], "records").samples
    return kind_of_sample(sample[1])


def test_kinds() -> None:
    asked = (("user", "who"), ("assistant", "he"))
    plain = kind(*asked)
    assert plain == (
        "in Latin letters", "a chat", "without tools", "without a thought",
        "without a system message", "with one answer",
    )  # fmt: skip
    assert kind(*asked, *asked) == plain._replace(turns="with several answers")
    assert kind(("system", "系统"), *asked) == plain._replace(system="with a system message")
    thought = plain._replace(thought="with a thought")
    assert kind(*asked, reasoning_content="hm") == thought
    assert kind(("user", "who"), ("assistant", "<think>hm</think>he")) == thought
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert kind(*asked, tools=tools) == plain._replace(tools="with tools")
    text = Continuation("a", "b")
    assert kind_of_sample(text)[:2] == ("in Latin letters", "without a chat")
    chat = Conversation([{"role": "user", "content": "谁"}, {"role": "assistant", "content": "他"}])
    assert kind_of_sample(Pair(chat, chat)) == kind_of_sample(Labelled(chat, True))
    assert kind_of_sample(chat).script == "in Chinese characters"


def test_a_spread() -> None:
    a = Kind("in Latin letters", "a chat", "", "", "", "")
    b, c = a._replace(script="in Cyrillic letters"), a._replace(tools="with tools")

    def chosen(lengths: list[int], kinds: list[Kind], n: int = 3) -> list[Choice]:
        return spread(np.array(lengths), kinds.__getitem__, n)

    assert chosen([5, 5, 6, 5], [a] * 4) == [(0, ""), (1, ""), (2, "")]
    assert chosen([5], [a]) == [(0, "")] and spread(np.array([5, 5]), lambda i: a, 0) == []
    assert chosen([5, 5, 6, 9], [a] * 4) == [(0, "the first"), (1, ""), (3, "the longest")]
    assert chosen([5, 5, 9, 5, 5], [a, b, b, b, c]) == [
        (0, "the first"), (2, "the longest"), (4, "with tools"),
    ]  # fmt: skip
    assert chosen([9, 5, 5, 5], [a, a, c, b]) == [
        (0, "the first and the longest"), (2, "with tools"), (3, "in Cyrillic letters"),
    ]  # fmt: skip
    assert chosen([5, 5, 5, 5], [a, c, c, b], 2) == [(0, "the first"), (3, b.script)]
    assert chosen([5, 5], [a, a], 3) == [Choice(0, ""), Choice(1, "")]
