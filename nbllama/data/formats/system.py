"""The system message of a chat, under the key "system" of its record or in its first message."""

from __future__ import annotations

from nbllama.data.formats.checks import Record, text_of
from nbllama.data.formats.parts import text_of_parts
from nbllama.data.formats.record import Conversation, Message, conversation
from nbllama.errors import DataError

_ROLES = ("system", "developer")


def chat_with_system(
    messages: list[Message], silent: frozenset[int], record: Record, notices: tuple[str, ...]
) -> Conversation:
    """Create a conversation that begins with the system message of its record.

    Raises `DataError` if the first message is a different system message, and in the same cases as
    `conversation`.
    """
    first = system_of(record, messages)
    silent = frozenset(i + len(first) for i in silent)
    return conversation(first + messages, silent, record, notices, n_first=len(first))


def system_of(record: Record, messages: list[Message]) -> list[Message]:
    """Return a list with the message under "system", empty if `messages` begin with that message.

    The value of "system" is text, or a list of parts as in Anthropic's API. Raises `DataError` if
    the first message is a different system message.
    """
    if record.get("system") is None:
        return []
    listed = isinstance(record["system"], list)
    text = text_of_parts(record, "system") if listed else text_of(record, "system")
    if not text.strip():
        return []
    if messages[0]["role"] not in _ROLES:
        return [{"role": "system", "content": text}]
    if messages[0]["content"].strip() != text.strip():
        raise DataError(
            f'"system" differs from the first message, whose role is "{messages[0]["role"]}"; keep '
            "one of them"
        )
    return []
