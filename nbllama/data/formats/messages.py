"""Chats as OpenAI writes them: {"messages": [{"role": ..., "content": ...}, ...]}.

A message's content is text, or a list of {"type": "text", "text": ...} parts. `"weight": 0` in an
assistant message takes it out of training. Calls of tools are text: each one a line of JSON in
<tool_call> marks behind the message's content, as the Hermes and Qwen models write them; what a
tool answers is a message of the role "tool". Other keys are passed over.
"""

from __future__ import annotations

import json
from typing import Any

from nbllama.data.formats.record import (
    ANSWERING_ROLE,
    Conversation,
    Format,
    Message,
    Record,
    Style,
    check_unicode,
    conversation,
    filled,
    kind_of,
    text_of,
)
from nbllama.errors import DataError


def read(record: Record, style: Style) -> Conversation:
    """The messages of a chat. Raises `DataError`."""
    for key in ("tools", "functions"):
        if record.get(key):
            raise DataError(
                f'the chat has "{key}", which would be left out; say in a system message which '
                "tools there are"
            )
    return conversation(*messages_of(record, "messages"))


def messages_of(record: Record, key: str) -> tuple[list[Message], frozenset[int]]:
    """The messages under `key`, and the numbers (from 0) of those with the weight 0."""
    if key not in record:
        raise DataError(f'the key "{key}" is missing')
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else kind_of(messages)
        raise DataError(f'"{key}" must be a list of messages, not {what}')
    read_ones = [_message(m, f"message {i}: ") for i, m in enumerate(messages, 1)]
    silent = frozenset(i for i, m in enumerate(messages) if _weight(m, i + 1) == 0)
    return read_ones, silent


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where}must be an object, not {kind_of(message)}")
    role = filled(text_of(message, "role", where), f'{where}"role"')
    calls = message.get("tool_calls")
    if isinstance(message.get("content"), list):
        content = _parts(message["content"], where)
    else:
        content = text_of(message, "content", where, default="" if calls else None)
    if calls:
        lines = [content] if content.strip() else []
        content = "\n".join([*lines, *_calls(calls, where)])
    return {"role": role, "content": content}


def _parts(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f'{where}"content" has a part that is not text')
        texts.append(text_of(part, "text", where))
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[str]:
    """Each call on three lines: `<tool_call>`, {"name": ..., "arguments": ...}, `</tool_call>`."""
    if not isinstance(calls, list):
        raise DataError(f'{where}"tool_calls" must be a list, not {kind_of(calls)}')
    out = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise DataError(f'{where}"tool_calls" holds no function')
        name = text_of(function, "name", f"{where}a tool call: ")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):  # JSON inside of JSON
            try:
                arguments = json.loads(arguments)
            except ValueError as e:
                raise DataError(f"{where}the arguments of a tool call are broken JSON") from e
        line = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        check_unicode(line, f"{where}a tool call")
        out.append(f"<tool_call>\n{line}\n</tool_call>")
    return out


def _weight(message: Record, number: int) -> int:
    weight = message.get("weight")
    if weight is None or message["role"] != ANSWERING_ROLE:
        return 1
    if weight not in (0, 1):
        raise DataError(f'message {number}: "weight" must be 0 or 1')
    return int(weight)


FORMAT = Format("chat", ("messages",), read)
