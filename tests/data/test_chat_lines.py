from __future__ import annotations

import json
from typing import Any

import pytest

from nbllama.data.chat_lines import Chat, is_json_object, numbered_lines, parse_chats
from nbllama.errors import DataError

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
Q: Any = {"role": "user", "content": "q"}
A: Any = {"role": "assistant", "content": "a"}


def test_lines_and_their_numbers() -> None:
    content = f"\n{GOOD}\r\n  \n{GOOD}".encode()
    expected = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert parse_chats(content, "x") == [Chat(2, expected), Chat(4, expected)]
    assert parse_chats(b"\xef\xbb\xbf" + GOOD.encode(), "x") == [Chat(1, expected)]


def test_only_a_line_feed_ends_a_line() -> None:
    """JSON strings may hold U+2028 and others as they are; `str.splitlines` breaks there."""
    text = "one \u2028 two \x85 three \x0b four\nfive"
    assert list(numbered_lines(text)) == [(1, text.split("\n")[0]), (2, "five")]
    line = GOOD.replace('"a"', '"a\u2028b"')
    assert parse_chats(line.encode(), "x")[0].messages[1]["content"] == "a\u2028b"


def test_content_is_kept_as_it_is_and_unknown_keys_are_passed_over() -> None:
    record = {
        "id": 7,
        "tools": [],
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": " q\n", "name": "Ann", "tool_calls": None},
            {"content": "\ta \U0001f600", "role": "assistant"},
        ],
    }
    (chat,) = parse_chats(json.dumps(record).encode(), "x")
    assert chat.messages == [
        {"role": "system", "content": ""},
        {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "\ta \U0001f600"},
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "broken JSON at column 15: "),
        (GOOD + GOOD, "broken JSON at column 88: Extra data"),
        ("[" * 100_000, "broken JSON: "),
        ('{"a": ' + "1" * 5000 + "}", "broken JSON: "),
        ("[1]", 'a chat is an object {"messages": [...]}, not a list'),
        ("null", "not null"),
        ("true", "not true or false"),
        ('"messages"', "not text"),
        ("3.5", "not a number"),
        ("{}", 'the key "messages" is missing'),
        ('{"Messages": []}', 'the key "messages" is missing'),
        ('{"messages": []}', '"messages" must be a list of messages, not empty'),
        ('{"messages": {}}', '"messages" must be a list of messages, not an object'),
        ('{"messages": "hi"}', '"messages" must be a list of messages, not text'),
    ],
)
def test_bad_lines(line: str, reason: str) -> None:
    check(line, reason)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Q], 'there is no message of the role "assistant" to train on'),
        ([Q, 5], "message 2 must be an object, not a number"),
        ([Q, {"role": "assistant"}], 'message 2: the key "content" is missing'),
        ([{"content": "q"}, A], 'message 1: the key "role" is missing'),
        ([Q, {**A, "content": None}], 'message 2: "content" must be text, not null'),
        ([Q, {**A, "content": [{"text": "a"}]}], 'message 2: "content" must be text, not a list'),
        ([{**Q, "role": 1}, A], 'message 1: "role" must be text, not a number'),
        ([{**Q, "role": " "}, A], 'message 1: "role" is empty'),
        ([Q, {**A, "content": ""}], "message 2: the answer is empty"),
        ([Q, A, Q, {**A, "content": " \n"}], "message 4: the answer is empty"),
        ([Q, {**A, "content": "ab\ud800"}], 'message 2: "content" holds half a surrogate pair at'),
        (
            [Q, {**A, "tool_calls": [{}]}],
            'message 2 has "tool_calls": tool calls are not supported',
        ),
    ],
)
def test_bad_messages(messages: list[Any], reason: str) -> None:
    check(json.dumps({"messages": messages}), reason)


def test_tools_are_refused() -> None:
    check(json.dumps({"messages": [Q, A], "tools": [{"name": "f"}]}), 'the chat has "tools"')


def check(line: str, reason: str) -> None:
    """`line` behind a good and a blank one must be told as line 3, in one terminal line."""
    with pytest.raises(DataError) as caught:
        parse_chats(f"{GOOD}\n\n{line}\n{GOOD}\n".encode(), "dir/my\tchats.jsonl")
    message = str(caught.value)
    assert message.startswith("dir/my\\tchats.jsonl, line 3: ")
    assert reason in message
    assert message.isprintable()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n\n", "x is empty: it holds no chat"),
        (GOOD.encode() + b"\n\xc3(", f"byte 0xc3 at offset {len(GOOD) + 1}, line 2;"),
    ],
)
def test_bad_files(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_chats(content, "x")


def test_is_json_object() -> None:
    for line in (GOOD, "  {}  ", '{"a": [1, {"b": 2}]}\r'):
        assert is_json_object(line), line
    for line in ("", "[]", "{", "{}}", "{} {}", "text {}", "null", '{"a": ' * 100_000, "{'a': 1}"):
        assert not is_json_object(line), line[:20]
