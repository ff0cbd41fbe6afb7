"""Chats in the OpenAI format: {"messages": [{"role": ..., "content": ...}, ...]}.

The content of a message is text, or a list of {"type": "text", "text": ...} parts. An assistant
message can contain tool calls, a thought, and a key that excludes it from training. The record can
also contain "system", "tools" and "chat_template_kwargs". Other keys are ignored and reported.
"""

from __future__ import annotations

import re
from typing import Any

from nbllama.data.formats.calls import CALLING_ROLES, calls_in_text, calls_of
from nbllama.data.formats.checks import Record, filled, kind_of, text_of
from nbllama.data.formats.joined import with_joined_calls
from nbllama.data.formats.masks import MASK_KEYS, silent_ones
from nbllama.data.formats.parts import text_of_parts
from nbllama.data.formats.record import ANSWERING_ROLE, Conversation, Format, Message, Style
from nbllama.data.formats.system import chat_with_system
from nbllama.data.json_text import value_of
from nbllama.errors import DataError
from nbllama.text.thoughts import KEYS as THOUGHT_KEYS
from nbllama.text.thoughts import closer_in, is_cut_off, leading_thought, opening

# The role of a message in a list in Python's notation, which pandas writes to tables.
_ROLE_IN_TEXT = re.compile(r"'role': '(?:user|assistant|system)'")
EXTRA_KEYS = ("tool_calls", "function_call", *MASK_KEYS, *THOUGHT_KEYS)
MESSAGE_KEYS = frozenset(("role", "content", *EXTRA_KEYS))
"""The keys that are read from every message."""
TURN_KEYS = frozenset(("from", "value", *EXTRA_KEYS))
"""The keys that are read from every turn of a chat in ShareGPT's format."""
RESULT_KEYS = frozenset(("name", "tool_call_id"))
"""The keys that are also read from the result of a tool call."""


def read(record: Record, style: Style) -> Conversation:
    """Read the messages of a chat. Raises `DataError`."""
    messages, silent, notices = messages_of(record, "messages")
    return chat_with_system(messages, silent, record, notices)


def messages_of(record: Record, key: str) -> tuple[list[Message], frozenset[int], tuple[str, ...]]:
    """Return the messages under `key`.

    Also returns the indices of the answers that are not trained, and the kinds of notices (see
    `Conversation`).
    """
    if key not in record:
        raise DataError(f'the key "{key}" is missing')
    messages = listed(record, key)
    parsed = [_message(m, f"message {i}: ") for i, m in enumerate(messages, 1)]
    silent, notices = silent_ones(messages, [m["role"] for m in parsed])
    calling = [m["role"] in CALLING_ROLES for m in messages]
    return with_joined_calls((parsed, silent, notices), calling)


def listed(record: Record, key: str) -> list[Any]:
    """Return the list under `key`, without checking its messages. Raises `DataError`."""
    messages = record[key]
    if isinstance(messages, str) and messages.lstrip()[:1] == "[":
        messages = value_of(messages, f'"{key}" is text, but not a list of messages in JSON')
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else kind_of(messages)
        hint = "; in text, write the list as JSON" if isinstance(messages, str) else ""
        raise DataError(f'"{key}" must be a list of messages, not {what}{hint}')
    return messages


def check_no_list(record: Record, key: str) -> None:
    """Raise `DataError` for plain text that was probably meant to be a list of messages."""
    text = record.get(key)
    if isinstance(text, str) and text[:2] == "[{" and _ROLE_IN_TEXT.search(text):
        raise DataError(
            f'"{key}" looks like a list of messages, but is text that is not valid JSON; write the '
            "list with json.dumps"
        )


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where}must be an object, not {kind_of(message)}")
    role = filled(text_of(message, "role", where), f'{where}"role"')
    calls = calls_of(message, where)
    if calls and role != ANSWERING_ROLE:
        raise DataError(f'{where}only messages with the role "{ANSWERING_ROLE}" can call tools')
    if isinstance(message.get("content"), list):
        content = text_of_parts(message, "content", where, answer=role == ANSWERING_ROLE)
    else:
        content = text_of(message, "content", where, default="" if calls else None)
    if role in CALLING_ROLES:
        calls, content = calls_in_text(content, where)
        role = ANSWERING_ROLE
    out = {"role": "tool" if role == "function" else role, "content": content}
    return out | extras(message, out, calls, where)


def extras(message: Record, read: Message, calls: list[Message], where: str) -> Message:
    """Return the parts of a message other than the role and content (which are in `read`).

    These are the thought, the tool calls and, for the result of a tool call, the name of the tool
    and the id of the call. If there is a thought next to content that begins with an empty thought,
    the content without the empty thought is also returned. Raises `DataError`.
    """
    out: Message = {}
    role = read["role"]
    thought, content = _thought(message, read["content"], where)
    if content != read["content"]:
        out["content"] = content
    if thought:
        if role != ANSWERING_ROLE:
            raise DataError(
                f"{where}only answers can contain a thought, not messages with the role '{role}'"
            )
        out |= dict.fromkeys(THOUGHT_KEYS, thought)
    if calls:
        out["tool_calls"] = calls
    if role == "tool":
        for key in sorted(RESULT_KEYS):
            if message.get(key) is not None:
                out[key] = text_of(message, key, where)
    return out


def _thought(message: Record, content: str, where: str) -> tuple[str, str]:
    """Return the thought under one of the `THOUGHT_KEYS`, without marks, or "", and the content.

    An empty thought at the start of the content is removed if there is a thought under a key, as
    a template would write both. If the content begins with the same thought, the thought is "".
    """
    found = ""
    for key in THOUGHT_KEYS:
        if message.get(key) is None:
            continue
        thought = text_of(message, key, where, default="")
        if thought.strip() and found and thought != found:
            raise DataError(f'{where}the message contains two thoughts, one of them under "{key}"')
        found = found or (thought if thought.strip() else "")
    if not found:
        return "", content
    found = _without_marks(found, where)
    inside = leading_thought(content)
    if inside is None:
        return found, content
    if not inside.inner.strip():
        return found, content[inside.end :].lstrip("\r\n")
    if not inside.closed and not is_cut_off(content):
        return found, content  # a mark in a sentence
    if inside.inner.strip() != found.strip():
        raise DataError(
            f"{where}the message contains two thoughts, one in its text and a different one under "
            f'"{next(key for key in THOUGHT_KEYS if message.get(key))}"; keep one of them'
        )
    return "", content


def _without_marks(thought: str, where: str) -> str:
    """Return a thought without the marks around it, such as <think>, which the template adds."""
    found = opening(thought)
    if found is None:
        closer = closer_in(thought)
        ends = closer is not None and not thought[closer.end() :].strip()
        return thought[: closer.start()].strip() if closer is not None and ends else thought
    if not found.closed:
        marked = found.opener.startswith("<") and found.inner.startswith("\n")
        return found.inner.strip() if marked else thought
    if thought[found.end :].strip():
        raise DataError(
            f"{where}the thought contains text after {found.closer}; move it into the message's "
            "text"
        )
    return found.inner.strip()


FORMAT = Format("chat", ("messages",), read)
