"""Join parallel tool calls that are written as separate messages, one for each call.

ms-swift writes parallel calls in this way: two messages with calls, then two with results. A chat
template expects them as the calls of a single answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from nbllama.errors import DataError

JOINED = "joined"
"""The kind of the notice about each message that is joined to the previous one."""

Message = dict[str, Any]
Read = tuple[list[Message], frozenset[int], tuple[str, ...]]
"""Messages, the indices of the answers that are not trained, and the kinds of notices."""


def with_joined_calls(read: Read, calling: Sequence[bool]) -> Read:
    """Join each message with calls to the message directly before it if both have calling roles.

    `calling` says which messages have one of the `CALLING_ROLES`. Raises `DataError` if one of two
    consecutive ones contains text instead of a call, if the second one contains a thought, or if
    only one is excluded from training.
    """
    messages, silent, notices = read
    if not any(a and b for a, b in pairwise(calling)):
        return read
    out: list[Message] = []
    not_trained = set()
    for i, message in enumerate(messages):
        if i and calling[i - 1] and calling[i]:
            _check(messages[i - 1], message, i)
            if (i in silent) != (i - 1 in silent):
                raise DataError(
                    f"message {i + 1}: it calls a tool directly after another call, but only one "
                    "of the two is excluded from training; exclude both or none"
                )
            out[-1] = out[-1] | {"tool_calls": out[-1]["tool_calls"] + message["tool_calls"]}
            notices = (*notices, JOINED)
            continue
        if i in silent:
            not_trained.add(len(out))
        out.append(message)
    return out, frozenset(not_trained), notices


def _check(before: Message, message: Message, i: int) -> None:
    """Raise `DataError` if two consecutive messages are not parallel calls."""
    if not before.get("tool_calls") or message.keys() != {"role", "content", "tool_calls"}:
        raise DataError(
            f"message {i + 1}: the previous message also has a role for tool calls, but only calls "
            "can be joined, without a text or a thought between them"
        )


def as_numbered(notices: Collection[str]) -> str:
    """Return a hint for errors in which messages are numbered after joining."""
    return "; messages with consecutive calls are counted as one" if JOINED in notices else ""
