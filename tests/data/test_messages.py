"""JSON lines of chats: how they are read, and every way in which one may be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation, DataFile, open_data
from nbllama.data.formats import Sample
from nbllama.data.json_values import looks_like_json, numbered_lines
from nbllama.errors import DataError

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
    """JSON strings may hold U+2028 and others as they are; `str.splitlines` breaks there."""
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
    """OpenAI's further keys. What a tool is asked and answers is text like all else."""
    function = {"name": "f", "arguments": '{"x": "天"}'}
    call = {"id": "1", "type": "function", "function": function}
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]
    record: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            {"role": "assistant", "content": "see:", "tool_calls": [function, {"name": "g"}]},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "assistant", "content": "yes", "weight": 1},
        ]
    }  # fmt: skip
    f = '<tool_call>\n{"name": "f", "arguments": {"x": "天"}}\n</tool_call>'
    g = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    found = one(tmp_path, record)
    assert [m["role"] for m in found.messages] == [m["role"] for m in record["messages"]]
    texts = ["q!", f, "42", f"see:\n{f}\n{g}", "no", "yes"]
    assert [m["content"] for m in found.messages] == texts
    assert found.silent == {4}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"messages": [', "broken JSON at column 15: "),
        (GOOD + '{"a', "broken JSON at column 88: Extra data"),
        ("[" * 100_000, "broken JSON: "),
        ('{"a": ' + "1" * 5000 + "}", "broken JSON: "),
        ("[1]", "a record is an object with named values, not a number"),
        ("[]", "a record is an object with named values, not a list"),
        ("null", "not null"),
        ("true", "not true or false"),
        ('"messages"', "not text"),
        ("3.5", "not a number"),
        ("{}", 'the key "messages" is missing'),
        ('{"Messages": []}', '"messages" must be a list of messages, not empty'),
        ('{"messages": [], "messages": []}', 'the key "messages" comes twice in an object'),
        ('{"messages": Infinity}', "broken JSON: Infinity is not a value of JSON"),
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
        ([Q], 'there is no message of the role "assistant" to train on'),
        ([Q, 5], "message 2: must be an object, not a number"),
        ([Q, {"role": "assistant"}], 'message 2: the key "content" is missing'),
        ([{"content": "q"}, A], 'message 1: the key "role" is missing'),
        ([Q, {**A, "content": None}], 'message 2: "content" must be text, not null'),
        ([Q, {**A, "content": True}], 'message 2: "content" must be text, not true or false'),
        (
            [Q, {**A, "content": [{"text": "a"}]}],
            'message 2: "content" has a part that is not text',
        ),
        ([Q, {**A, "content": ["a"]}], 'message 2: "content" has a part that is not text'),
        ([Q, {**A, "weight": 2}], 'message 2: "weight" must be 0 or 1'),
        ([Q, {**A, "weight": 0}], "every answer has the weight 0: nothing to train on"),
        ([Q, {**A, "tool_calls": {"name": "f"}}], '"tool_calls" must be a list, not an object'),
        ([Q, {**A, "tool_calls": [1]}], 'message 2: "tool_calls" holds no function'),
        ([Q, {**A, "tool_calls": [{"name": 1}]}], 'a tool call: "name" must be text'),
        (
            [Q, {**A, "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "the arguments of a tool call are broken JSON",
        ),
        ([{**Q, "role": 1}, A], 'message 1: "role" must be text, not a number'),
        ([{**Q, "role": " "}, A], 'message 1: "role" is empty'),
        ([Q, {**A, "content": ""}], "message 2: the answer is empty"),
        ([Q, A, Q, {**A, "content": " \n"}], "message 4: the answer is empty"),
        ([Q, {**A, "content": "ab\ud800"}], 'message 2: "content" holds half a surrogate pair at'),
    ],
)
def test_bad_messages(tmp_path: Path, messages: list[Any], reason: str) -> None:
    check(tmp_path, json.dumps({"messages": messages}), reason)


def test_lists_of_tools_are_refused(tmp_path: Path) -> None:
    line = json.dumps({"messages": [Q, A], "tools": [{"name": "f"}]})
    check(tmp_path, line, 'the chat has "tools", which would be left out')


def check(folder: Path, line: str, reason: str) -> None:
    """`line` behind a good and a blank one must be told as line 3, in one terminal line; or be
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
        (b"\n \n\n", "nothing in .*x can be trained: it holds no record"),
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
    with pytest.raises(DataError, match=r"nothing in .* can be trained; line 1: not UTF-8"):
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
