"""Chats in the OpenAI format: {"messages": [{"role": ..., "content": ...}, ...]}.

The content of a message is text, or a list of {"type": "text", "text": ...} parts. An assistant
message can contain tool calls, a thought, and a key that excludes it from training. The record can
also contain "tools" and "chat_template_kwargs". Other keys are ignored and reported.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.formats.calls import calls_of
from nbllama.data.formats.record import (
    ANSWERING_ROLE,
    Conversation,
    Format,
    Message,
    Record,
    Style,
    conversation,
    filled,
    kind_of,
    text_of,
)
from nbllama.errors import DataError
from nbllama.text.thoughts import KEYS as THOUGHT_KEYS

MASK_KEYS = ("weight", "loss", "train", "trainable", "masked")
_EXTRA_KEYS = ("tool_calls", "function_call", *MASK_KEYS, *THOUGHT_KEYS)
MESSAGE_KEYS = frozenset(("role", "content", *_EXTRA_KEYS))
"""The keys that are read from every message."""
TURN_KEYS = frozenset(("from", "value", *_EXTRA_KEYS))
"""The keys that are read from every turn of a chat in ShareGPT's format."""
RESULT_KEYS = frozenset(("name", "tool_call_id"))
"""The keys that are also read from the result of a tool call."""


def read(record: Record, style: Style) -> Conversation:
    """Read the messages of a chat. Raises `DataError`."""
    messages, silent, notices = messages_of(record, "messages")
    return conversation(messages, silent, record, notices)


def messages_of(record: Record, key: str) -> tuple[list[Message], frozenset[int], tuple[str, ...]]:
    """Return the messages under `key`.

    Also returns the indices of the answers that are not trained, and the kinds of notices (see
    `Conversation`).
    """
    if key not in record:
        raise DataError(f'the key "{key}" is missing')
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else kind_of(messages)
        raise DataError(f'"{key}" must be a list of messages, not {what}')
    parsed = [_message(m, f"message {i}: ") for i, m in enumerate(messages, 1)]
    silent, notices = silent_ones(messages, [m["role"] for m in parsed])
    return parsed, silent, notices


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where}must be an object, not {kind_of(message)}")
    role = filled(text_of(message, "role", where), f'{where}"role"')
    calls = calls_of(message, where)
    if calls and role != ANSWERING_ROLE:
        raise DataError(f'{where}only messages with the role "{ANSWERING_ROLE}" can call tools')
    if isinstance(message.get("content"), list):
        content = _parts(message["content"], where)
    else:
        content = text_of(message, "content", where, default="" if calls else None)
    out = {"role": "tool" if role == "function" else role, "content": content}
    return out | extras(message, role, calls, where)


def extras(message: Record, role: str, calls: list[Message], where: str) -> Message:
    """Return the parts of a message other than its role and content.

    These are the thought, the tool calls and, for the result of a tool call, the name of the tool
    and the id of the call. Raises `DataError`.
    """
    out: Message = {}
    thought = _thought(message, where)
    if thought:
        if role != ANSWERING_ROLE:
            raise DataError(
                f"{where}only answers can contain a thought, not messages with the role '{role}'"
            )
        out |= dict.fromkeys(THOUGHT_KEYS, thought)
    if calls:
        out["tool_calls"] = calls
    if role in ("tool", "function"):
        for key in sorted(RESULT_KEYS):
            if message.get(key) is not None:
                out[key] = text_of(message, key, where)
    return out


def _thought(message: Record, where: str) -> str:
    found = ""
    for key in THOUGHT_KEYS:
        if message.get(key) is None:
            continue
        thought = text_of(message, key, where, default="")
        if thought.strip() and found and thought != found:
            raise DataError(f'{where}the message contains two thoughts, one of them under "{key}"')
        found = found or (thought if thought.strip() else "")
    return found


def _parts(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise DataError(f'{where}"content" has a part that is not text')
        texts.append(text_of(part, "text", where))
    return "".join(texts)


def silent_ones(messages: list[Record], roles: list[str]) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the indices of the answers that mask keys exclude from training, and notices.

    Each notice is represented by its kind (`nbllama.data.notices`).

    Raises `DataError` if the value of a mask key is not 0, 1, true or false, if mask keys
    contradict each other, or if one requests training on a message that is not an answer.
    """
    silent = set()
    notices: tuple[str, ...] = ()
    for i, (message, role) in enumerate(zip(messages, roles, strict=True)):
        wanted = wanted_by(message, f"message {i + 1}: ")
        if not wanted:
            continue
        if role != ANSWERING_ROLE:
            if any(wanted.values()):
                key = next(key for key, on in wanted.items() if on)
                raise DataError(
                    f'message {i + 1}: "{key}" marks a message with the role "{role}" for '
                    "training, but only answers can be trained on"
                )
            notices = ("mask",)
        elif len(set(wanted.values())) > 1:
            raise DataError(f"message {i + 1}: {' and '.join(wanted)} contradict each other")
        elif not any(wanted.values()):
            silent.add(i)
    return frozenset(silent), notices


def wanted_by(message: Record, where: str) -> dict[str, bool]:
    """Return, for each mask key in a message, whether it requests training. Raises `DataError`."""
    wanted: dict[str, bool] = {}
    if message.keys().isdisjoint(MASK_KEYS):
        return wanted
    for key in MASK_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise DataError(f'{where}"{key}" must be 0 or 1')
        wanted[key] = bool(value) != (key == "masked")
    return wanted


FORMAT = Format("chat", ("messages",), read)
