"""JSON lines of chats: what a file must look like, and every way in which it may not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from nbllama.data.text_file import decode_utf8
from nbllama.errors import DataError, shown

ANSWERING_ROLE = "assistant"
_NOT_SUPPORTED = ("tool_calls", "tools", "functions")


class Chat(NamedTuple):
    """One line of the file: its number (from 1) and its messages, {"role": ..., "content": ...}."""

    line: int
    messages: list[dict[str, str]]


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; only "\\n" ends a line.

    (`str.splitlines` also breaks at U+2028 and others, which JSON strings may hold as they are.)
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def is_json_object(line: str) -> bool:
    """Whether a line is one whole JSON object."""
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def parse_chats(content: bytes, path: str | os.PathLike[str]) -> list[Chat]:
    """The chats of a JSON-lines file, in its order. Blank lines and unknown keys are passed over.

    Raises `DataError` with file, line and reason for: bytes that are not UTF-8, broken JSON, no
    "messages" list, a message without "role" or "content" or with another type than text in
    them, tool calls, a chat without an assistant message, an answer that is empty or blank, a
    lone surrogate; and for a file without a single chat.
    """
    chats = []
    for number, line in numbered_lines(decode_utf8(content, path)):
        try:
            chats.append(Chat(number, _messages(_json(line))))
        except DataError as e:
            raise DataError(f"{shown(os.fspath(path))}, line {number}: {e}") from e.__cause__
    if not chats:
        raise DataError(f"training data {shown(os.fspath(path))} is empty: it holds no chat")
    return chats


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"broken JSON at column {e.colno}: {e.msg}") from e
    except (ValueError, RecursionError) as e:
        raise DataError(f"broken JSON: {e}") from e


def _messages(record: Any) -> list[dict[str, str]]:
    if not isinstance(record, dict):
        raise DataError(f'a chat is an object {{"messages": [...]}}, not {_kind(record)}')
    if "messages" not in record:
        raise DataError('the key "messages" is missing')
    _refuse_tools(record, "the chat")
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else _kind(messages)
        raise DataError(f'"messages" must be a list of messages, not {what}')
    out = [_message(m, i) for i, m in enumerate(messages, 1)]
    if all(m["role"] != ANSWERING_ROLE for m in out):
        raise DataError(f'there is no message of the role "{ANSWERING_ROLE}" to train on')
    return out


def _message(message: Any, number: int) -> dict[str, str]:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise DataError(f"{where} must be an object, not {_kind(message)}")
    _refuse_tools(message, where)
    out = {}
    for key in ("role", "content"):
        if key not in message:
            raise DataError(f'{where}: the key "{key}" is missing')
        value = message[key]
        if not isinstance(value, str):
            raise DataError(f'{where}: "{key}" must be text, not {_kind(value)}')
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as e:
            raise DataError(
                f'{where}: "{key}" holds half a surrogate pair at character {e.start}'
            ) from e
        out[key] = value
    if not out["role"].strip():
        raise DataError(f'{where}: "role" is empty')
    if out["role"] == ANSWERING_ROLE and not out["content"].strip():
        raise DataError(f"{where}: the answer is empty")
    return out


def _refuse_tools(record: dict[str, Any], where: str) -> None:
    for key in _NOT_SUPPORTED:
        if record.get(key):
            raise DataError(f'{where} has "{key}": tool calls are not supported')


def _kind(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names[type(value)]
