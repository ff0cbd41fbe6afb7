"""Chats in ShareGPT's format: {"conversations": [{"from": "human", "value": ...}, ...]}.

The record can contain a system message under "system" and tools under "tools". The value of a
"function_call" turn is a tool call in JSON. Records whose "conversations" use "role" and "content"
are read as chats.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.formats.calls import CALLING_ROLES, RESULT_ROLES, calls_in_text, calls_of
from nbllama.data.formats.checks import Record, kind_of, text_of
from nbllama.data.formats.joined import with_joined_calls
from nbllama.data.formats.masks import silent_ones
from nbllama.data.formats.messages import extras, listed, messages_of
from nbllama.data.formats.parts import text_of_parts
from nbllama.data.formats.record import ANSWERING_ROLE, Conversation, Format, Message, Style
from nbllama.data.formats.system import chat_with_system
from nbllama.errors import DataError, shown

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "developer": "developer",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    **dict.fromkeys(CALLING_ROLES, "assistant"),
    "tool": "tool",
    **dict.fromkeys(RESULT_ROLES, "tool"),
}


def read(record: Record, style: Style) -> Conversation:
    """Read the messages of a conversation. Raises `DataError`."""
    turns = record.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        messages, silent, notices = messages_of(record, "conversations")
    else:
        if "conversations" not in record:
            raise DataError('the key "conversations" is missing')
        turns = listed(record, "conversations")
        messages = [_turn(turn, f"message {i}: ") for i, turn in enumerate(turns, 1)]
        silent, notices = silent_ones(turns, [m["role"] for m in messages])
        calling = [turn["from"].lower() in CALLING_ROLES for turn in turns]
        messages, silent, notices = with_joined_calls((messages, silent, notices), calling)
    return chat_with_system(messages, silent, record, notices)


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{where}must be an object, not {kind_of(turn)}")
    speaker = text_of(turn, "from", where).lower()
    if speaker not in ROLES:
        raise DataError(f"{where}\"from\" is '{shown(speaker, 40)}', not one of {', '.join(ROLES)}")
    role, calls = ROLES[speaker], calls_of(turn, where)
    if isinstance(turn.get("value"), list):
        value = text_of_parts(turn, "value", where, answer=role == ANSWERING_ROLE)
    else:
        value = text_of(turn, "value", where, default="" if calls else None)
    if speaker in CALLING_ROLES and not calls:
        calls, value = calls_in_text(value, where)
    message = {"role": role, "content": value}
    return message | extras(turn, message, calls, where)


FORMAT = Format("sharegpt", ("conversations",), read)
