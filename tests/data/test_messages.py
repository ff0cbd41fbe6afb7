"""JSON lines of chats: reading, and all kinds of bad lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, load_dataset, open_data, open_records
from nbllama.data.formats import Sample
from nbllama.data.json_values import looks_like_json, numbered_lines
from nbllama.errors import DataError
from nbllama.text import CHATML, ChatTemplate, Tokenizer

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
Q: Any = {"role": "user", "content": "q"}
A: Any = {"role": "assistant", "content": "a"}


def read(folder: Path, content: bytes, name: str = "x", **options: Any) -> DataFile:
    path = folder / name
    path.write_bytes(content)
    return open_data(path, "chat", **options)


def one(folder: Path, record: dict[str, Any]) -> Conversation:
    ((_, sample),) = read(folder, json.dumps(record).encode()).samples
    assert isinstance(sample, Conversation)
    return sample


def test_lines_and_their_numbers(tmp_path: Path) -> None:
    expected: Sample = Conversation([Q, A])
    found = read(tmp_path, f"\n{GOOD}\r\n  \n{GOOD}".encode())
    assert found.samples == [(2, expected), (4, expected)]
    assert (found.kind, found.format, found.bad) == ("chat", "chat", [])
    assert found.has_chats
    assert read(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()).samples == [(1, expected)]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """JSON strings can contain U+2028 and others unescaped; `str.splitlines` breaks there."""
    text = "one \u2028 two \x85 three \x0b four\nfive"
    assert list(numbered_lines(text)) == [(1, text.split("\n")[0]), (2, "five")]
    line = GOOD.replace('"a"', '"a\u2028b"')
    ((_, sample),) = read(tmp_path, line.encode()).samples
    assert isinstance(sample, Conversation) and sample.messages[1]["content"] == "a\u2028b"


def test_content_is_kept_as_it_is_and_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    record = {
        "id": 7,
        "tools": [],
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": " q\n", "name": "Ann", "tool_calls": None},
            {"content": "\ta \U0001f600", "role": "assistant"},
        ],
    }
    assert one(tmp_path, record).messages == [
        {"role": "system", "content": ""},
        {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "\ta \U0001f600"},
    ]


def test_parts_weights_and_tools(tmp_path: Path) -> None:
    """Further keys of OpenAI's format, as a server receives them."""
    function = {"name": "f", "arguments": '{"x": "天"}'}
    call = {"id": "1", "type": "function", "function": function}
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]
    tool = {"name": "f", "parameters": {}}
    record: dict[str, Any] = {
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
            {"role": "assistant", "content": "see:", "tool_calls": [function, {"name": "g"}]},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "assistant", "content": "yes", "weight": 1, "thinking": "t"},
        ],
    }
    f = {"name": "f", "arguments": {"x": "天"}, "text": '{"x": "天"}'}
    g = {"name": "g", "arguments": {}}
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "t")
    assert one(tmp_path, record) == Conversation(
        [
            {"role": "user", "content": "q!"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": f}],
            },
            {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
            {
                "role": "assistant",
                "content": "see:",
                "tool_calls": [{"type": "function", "function": x} for x in (f, g)],
            },
            {"role": "assistant", "content": "no"},
            {"role": "assistant", "content": "yes", **thought},
        ],
        frozenset([4]),
        [{"type": "function", "function": tool}],
        {"enable_thinking": False},
    )


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f"}, {}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f", "arguments": ""}, {}),
        ({"name": "f", "arguments": {}, "parameters": {"n": 4}}, {"n": 4}),
        ({"name": "f", "parameters": {"n": 4}}, {"n": 4}),
        ({"name": "f", "input": {"n": 4}}, {"n": 4}),
        ({"name": "f", "arguments": '{"n": 4}'}, {"n": 4}),
        ({"name": "f", "arguments": json.dumps('{"n": 4}')}, {"n": 4}),
        ({"name": "f", "arguments": "null"}, {}),
    ],
)
def test_arguments_of_calls(tmp_path: Path, call: Any, arguments: Any) -> None:
    """In "tool_calls", in OpenAI's old "function_call", and as a turn of ShareGPT."""
    for more in ({"tool_calls": [call]}, {"tool_calls": [{"function": call}]},
                 {"function_call": call}, {"tool_calls": json.dumps([call])}):  # fmt: skip
        messages = [Q, {"role": "assistant", "content": None, **more}]
        found = one(tmp_path, {"messages": messages}).messages[1]
        (read_call,) = found["tool_calls"]
        assert read_call["function"]["arguments"] == arguments and found["content"] == ""
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(call)}]
    path = tmp_path / "y"
    path.write_text(json.dumps({"conversations": turns}))
    ((_, sample),) = open_data(path, "sharegpt").samples
    assert isinstance(sample, Conversation)
    (read_call,) = sample.messages[1]["tool_calls"]
    assert read_call["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("key", "value", "silent"),
    [
        *[(k, v, True) for k in ("weight", "loss", "train", "trainable") for v in (0, False, 0.0)],
        *[(k, v, False) for k in ("weight", "loss", "train", "trainable") for v in (1, True, None)],
        *[("masked", v, bool(v)) for v in (0, 1, False, True, None)],
    ],
)
def test_mask_keys(tmp_path: Path, key: str, value: Any, silent: bool) -> None:
    """In a chat and in ShareGPT; on other messages only if the value is false."""
    chat = one(tmp_path, {"messages": [Q, {**A, key: value}, Q, A]})
    assert chat.silent == ({1} if silent else set())
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}] * 2
    turns[1] = {**turns[1], key: value}
    path = tmp_path / "y"
    path.write_text(json.dumps({"conversations": turns}))
    ((_, sample),) = open_data(path, "sharegpt").samples
    assert isinstance(sample, Conversation) and sample.silent == chat.silent
    if value is None:
        return
    record = {"messages": [{**Q, key: value}, A]}
    if silent:
        assert one(tmp_path, record).notices == ("mask",)
    else:
        with pytest.raises(DataError, match=f'message 1: "{key}" marks a message with the'):
            one(tmp_path, record)


def test_the_old_role_of_results_is_tool(tmp_path: Path) -> None:
    old = {"role": "function", "name": "f", "content": "7"}
    call = {"role": "assistant", "content": "Wait.", "function_call": {"name": "f"}}
    found = one(tmp_path, {"messages": [Q, call, old, A], "functions": [{"name": "f"}]})
    assert found.messages[2] == {"role": "tool", "name": "f", "content": "7"}
    assert found.tools == [{"type": "function", "function": {"name": "f"}}]
    assert found.messages[1]["content"] == "Wait." and found.messages[1]["tool_calls"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "invalid JSON at column 15: "),
        (GOOD + '{"a', "invalid JSON at column 88: Extra data"),
        ("[" * 100_000, "invalid JSON: "),
        ("[1]", "a record must be an object with named values, not a number"),
        ("[]", "a record must be an object with named values, not a list"),
        ("null", "not null"),
        ("true", "not true or false"),
        ('"messages"', "not text"),
        ("3.5", "not a number"),
        ("{}", 'the key "messages" is missing'),
        ('{"Messages": []}', '"messages" must be a list of messages, not empty'),
        ('{"messages": [], "messages": []}', 'the key "messages" appears twice in an object'),
        ('{"messages": Infinity}', "invalid JSON: Infinity is not a JSON value"),
        ('{"messages": []}', '"messages" must be a list of messages, not empty'),
        ('{"messages": {}}', '"messages" must be a list of messages, not an object'),
        ('{"messages": "hi"}', '"messages" must be a list of messages, not text'),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, reason: str) -> None:
    check(tmp_path, line, reason)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Q], 'there is no message with the role "assistant" to train on'),
        ([Q, 5], "message 2: must be an object, not a number"),
        ([Q, {"role": "assistant"}], 'message 2: the key "content" is missing'),
        ([{"content": "q"}, A], 'message 1: the key "role" is missing'),
        ([Q, {**A, "content": None}], 'message 2: "content" must be text, not null'),
        ([Q, {**A, "content": True}], 'message 2: "content" must be text, not true or false'),
        (
            [Q, {**A, "content": [{"text": "a"}]}],
            'message 2: part 1 of "content" ',
        ),
        ([Q, {**A, "content": ["a"]}], 'message 2: part 1 of "content" '),
        ([Q, {**A, "weight": 2}], 'message 2: "weight" must be 0 or 1'),
        ([Q, {**A, "weight": 0}], "every answer is excluded from training"),
        ([Q, {**A, "tool_calls": {"name": "f"}}], '"tool_calls" must be a list, not an object'),
        (
            [Q, {**A, "tool_calls": [1]}],
            'message 2: "tool_calls" contains an entry without a function',
        ),
        ([Q, {**A, "tool_calls": [{"name": 1}]}], 'a tool call: "name" must be text'),
        (
            [Q, {**A, "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "the arguments of a tool call: invalid JSON at column 2: ",
        ),
        (
            [Q, {**A, "tool_calls": [{"name": "f", "arguments": [4]}]}],
            "the arguments of 'f' must be an object, not a list",
        ),
        (
            [Q, {**A, "tool_calls": [{"name": "f", "args": {"n": 4}}]}],
            'has no "arguments", and the key "args" is unknown',
        ),
        (
            [Q, {**A, "tool_calls": [{"name": "f", "input": {"n": 4}, "arguments": {"n": 5}}]}],
            'has arguments under both "arguments" and "input"',
        ),
        ([Q, {**A, "tool_calls": "[{"}], '"tool_calls": invalid JSON at column 3: '),
        ([Q, {**A, "tool_calls": [{"name": " "}]}], "a tool call has an empty name"),
        (
            [Q, {**A, "tool_calls": [{"name": "f"}], "function_call": {"name": "f"}}],
            'use either "tool_calls" or "function_call", not both',
        ),
        ([{**Q, "tool_calls": [{"name": "f"}]}, A], 'only messages with the role "assistant" can'),
        ([Q, {**A, "weight": 0.5}], 'message 2: "weight" must be 0 or 1'),
        ([Q, {**A, "loss": "no"}], 'message 2: "loss" must be 0 or 1'),
        ([Q, {**A, "loss": 1, "masked": True}], "message 2: loss and masked contradict each other"),
        ([Q, {**A, "reasoning": {"effort": 1}}], '"reasoning" must be text, not an object'),
        (
            [Q, {**A, "reasoning": "x", "thinking": "y"}],
            'message 2: the message contains two thoughts, one of them under "thinking"',
        ),
        ([{**Q, "thinking": "x"}, A], "message 1: only answers can contain a thought"),
        ([{**Q, "role": 1}, A], 'message 1: "role" must be text, not a number'),
        ([{**Q, "role": " "}, A], 'message 1: "role" is empty'),
        ([Q, {**A, "content": ""}], "message 2: the answer is empty"),
        ([Q, A, Q, {**A, "content": " \n"}], "message 4: the answer is empty"),
        ([Q, {**A, "content": "ab\ud800"}], 'message 2: "content" must not contain an unpaired'),
    ],
)
def test_bad_messages(tmp_path: Path, messages: list[Any], reason: str) -> None:
    check(tmp_path, json.dumps({"messages": messages}), reason)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tools": {"name": "f"}}, '"tools" must be a list, not an object'),
        (
            {"tools": [{"parameters": {}}]},
            '"tools" contains an entry that is not a function with a name',
        ),
        ({"tools": "[{"}, '"tools": invalid JSON at column 3: '),
        (
            {"tools": json.loads('[{"name": "f", "x": ' + "[" * 80 + "]" * 80 + "}]")},
            '"tools" must not be nested more than 64 levels deep',
        ),
        ({"tools": "[" * 100_000}, '"tools": invalid JSON: nested too deeply'),
        ({"chat_template_kwargs": [1]}, '"chat_template_kwargs" must be an object, not a list'),
        ({"chat_template_kwargs": {"tools": 1}}, '"chat_template_kwargs" must not set "tools"'),
        ({"chat_template_kwargs": {"a b": 1}}, '"chat_template_kwargs" must not set "a b"'),
    ],
)
def test_bad_tools_and_variables(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    check(tmp_path, json.dumps({"messages": [Q, A], **more}), reason)


@pytest.mark.parametrize("value", [False, "false", "False"])
def test_a_switch_that_is_text_is_a_boolean(bpe: Tokenizer, value: Any) -> None:
    """Only variables that the template mentions are switches."""
    used, unused = "{% if enable_thinking is false and effort == 'False' %}Yes{% endif %}", ""
    variables = {"enable_thinking": value, "effort": "False"}
    assert "Yes" in "".join(texts_with(bpe, used, variables)[0])
    assert any("1 record sets variables" in n for n in texts_with(bpe, unused, variables)[1])


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), ("no", '"no"'), ("low", '"low"')])
def test_a_switch_that_is_neither_true_nor_false(bpe: Tokenizer, value: Any, shown: str) -> None:
    for name in ("enable_thinking", "thinking"):
        reason = f'"chat_template_kwargs": "{name}" must be true or false, not {shown}'
        with pytest.raises(DataError) as caught:
            texts_with(bpe, f"{{% if {name} %}}Yes{{% endif %}}", {name: value})
        assert reason in str(caught.value)
        notes = texts_with(bpe, "", {name: value})[1]
        assert any("1 record sets variables" in note for note in notes)


def texts_with(
    bpe: Tokenizer, more: str, variables: dict[str, Any]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts of a chat that sets variables, and the notes about it."""
    data = open_records([{"messages": [Q, A], "chat_template_kwargs": variables}], "x")
    with ChatTemplate(more + CHATML) as template:
        found = load_dataset(data, bpe, 64, template=template)
    return [bpe.decode(found.batch([0]).tokens.tolist())], found.notes


def check(folder: Path, line: str, reason: str) -> None:
    """`line` after a good and a blank one must be reported as line 3, in one terminal line; or be
    counted, with the same reason.
    """
    content = f"{GOOD}\n\n{line}\n{GOOD}\n".encode()
    with pytest.raises(DataError) as caught:
        read(folder, content, "my\tchats.jsonl")
    message = str(caught.value)
    assert "my\\tchats.jsonl, line 3: " in message
    assert reason in message
    assert message.isprintable()
    assert caught.value.exit_code == 2
    found = read(folder, content, skip_bad=True)
    assert [n for n, _ in found.samples] == [1, 4]
    ((where, why),) = found.bad
    assert where == 3 and reason in why


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n\n", "x contains nothing to train on: it has no records"),
        (GOOD.encode() + b"\n\xc3(", f"byte 0xc3 at offset {len(GOOD) + 1}, line 2;"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_bytes_that_are_not_utf8_spoil_their_line_only(tmp_path: Path) -> None:
    broken = GOOD.replace('"q"', '"天?"').encode().replace(b"?", b"\xff")
    content = GOOD.encode() + b"\n" + broken + b"\n" + GOOD.encode()
    found = read(tmp_path, content, skip_bad=True)
    assert [n for n, _ in found.samples] == [1, 3]
    offset = broken.index(b"\xff")
    assert found.bad == [(2, f"not UTF-8: byte 0xff at offset {offset} of the line")]
    with pytest.raises(DataError, match=r"contains nothing to train on; line 1: not UTF-8"):
        read(tmp_path, broken, skip_bad=True)


def test_looks_like_json() -> None:
    document = '"messages": [\n {\n "role": "user",\n }'
    for text in (
        GOOD, "  {}  ", '{"a": [1, {"b": 2}]}\r', "{'a': 1}", '[[{"role": 1', "{a: [", document,
        "x" + GOOD, GOOD + "\nbroken", "\ufeff" + GOOD,
    ):  # fmt: skip
        assert looks_like_json(text), text
    for text in (
        "", "[]", "{", "text {}", "null", "[1] see", "[Enter HAMLET]", '"No," he said: no.',
        "a\nb\n" + GOOD, "{{ name }} and {% if x %}", "}\n{\n",
    ):  # fmt: skip
        assert not looks_like_json(text), text
