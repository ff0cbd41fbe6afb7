"""Chats as ShareGPT exports them: {"conversations": [{"from": "human", "value": ...}, ...]}.

A system message may stand in front under "system". Files that have "role" and "content" under
"conversations" are read as chats.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.formats.messages import messages_of
from nbllama.data.formats.record import (
    Conversation,
    Format,
    Message,
    Record,
    Style,
    conversation,
    kind_of,
    text_of,
)
from nbllama.errors import DataError, shown

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def read(record: Record, style: Style) -> Conversation:
    """The messages of a conversation. Raises `DataError`."""
    turns = record.get("conversations")
    system = text_of(record, "system", default="")
    first = [{"role": "system", "content": system}] if system.strip() else []
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        messages, silent = messages_of(record, "conversations")
        return conversation(first + messages, frozenset(i + len(first) for i in silent))
    if "conversations" not in record:
        raise DataError('the key "conversations" is missing')
    if not isinstance(turns, list) or not turns:
        what = "empty" if turns == [] else kind_of(turns)
        raise DataError(f'"conversations" must be a list of messages, not {what}')
    return conversation(first + [_turn(turn, f"message {i}: ") for i, turn in enumerate(turns, 1)])


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{where}must be an object, not {kind_of(turn)}")
    speaker = text_of(turn, "from", where)
    if speaker.lower() not in ROLES:
        raise DataError(f"{where}'{shown(speaker, 40)}' is not one of {', '.join(ROLES)}")
    return {"role": ROLES[speaker.lower()], "content": text_of(turn, "value", where)}


FORMAT = Format("sharegpt", ("conversations",), read)
