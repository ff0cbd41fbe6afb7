"""Tool calls that would be read differently from what their author meant."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbllama.errors import DataError
from tests.data.test_as_meant import chat, opened

Q: Any = {"role": "user", "content": "q"}
A: Any = {"role": "assistant", "content": "a"}
TWICE = '{"n": 4, "n": 5}'


def with_call(call: Any) -> dict[str, Any]:
    return {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [call]}]}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            {"type": "function", "function": {"name": "f"}, "arguments": {"n": 4}},
            'message 2: the call to \'f\' has "arguments" next to "function"; move it into',
        ),
        (
            {"function": {"name": "f", "arguments": {}}, "Args": "4"},
            'has "Args" next to "function"',
        ),
        (
            {"name": "f", "arguments": {}, "args": {"n": 4}},
            "the call to 'f' has the unknown key \"args\" next to its arguments; put all arguments",
        ),
        ({"name": "f", "arguments": {"m": 1}, "kwargs": {"n": 4}}, 'unknown key "kwargs"'),
        ({"function": {"name": "f", "input": "", "params": "4"}}, 'unknown key "params"'),
        (
            {"function": {"name": "f"}, "weight": 0},
            "the call to 'f' has \"weight\", but only whole messages can be excluded from training",
        ),
        ({"function": {"name": "f", "masked": True}}, 'has "masked", but only whole messages'),
        ({"name": "f", "arguments": {"n": float("inf")}}, "a number that is not finite"),
        ({"name": "f", "arguments": '{"n": NaN}'}, "invalid JSON: NaN is not a JSON value"),
        (
            {"name": "f", "arguments": '{"n": 1e400}'},
            "a number that is not finite; put it in quotes",
        ),
        ({"name": "f", "arguments": json.dumps('{"n": -Infinity}')}, "-Infinity is not a JSON"),
    ],
)
def test_calls_that_are_refused(call: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(with_call(call))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"n": 4}, "args": None, "weight": 1, "masked": False},
        {"function": {"name": "f", "arguments": {"n": 4}}, "arguments": {}, "args": []},
        {"function": {"name": "f", "arguments": {"n": 4}, "result": 7}, "extra_content": {"g": 1}},
    ],
)
def test_other_keys_of_calls(call: Any) -> None:
    function = chat(with_call(call)).messages[1]["tool_calls"][0]["function"]
    assert function == {"name": "f", "arguments": {"n": 4}}


@pytest.mark.parametrize(
    "record",
    [
        with_call({"name": "f", "arguments": TWICE}),
        with_call({"name": "f", "arguments": json.dumps(TWICE)}),
        {"messages": [Q, {**A, "tool_calls": f'[{{"name": "f", "arguments": {TWICE}}}]'}]},
        {"messages": [Q, {**A, "function_call": f'{{"name": "f", "arguments": {TWICE}}}'}]},
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": f'{{"name": "f", "arguments": {TWICE}}}'},
            ]
        },
        {"messages": [Q, A], "tools": f'[{{"name": "f", "parameters": {TWICE}}}]'},
        {"messages": [Q, A], "chat_template_kwargs": TWICE},
    ],
)
def test_a_key_that_appears_twice_in_json_text(record: dict[str, Any]) -> None:
    with pytest.raises(DataError, match='invalid JSON: the key "n" appears twice in an object'):
        opened(record)
