"""Read the messages of a prompt in the same way as training, so that both use the same prompt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nbllama.data.counts import Counts
from nbllama.data.formats.messages import messages_of
from nbllama.data.in_memory import json_form
from nbllama.data.turns import with_roles
from nbllama.errors import UsageError, shown


def messages_of_prompt(prompt: object) -> list[dict[str, Any]]:
    """Return the messages of a chat in the form that training uses.

    Roles get their standard names, text parts are joined, and other keys are left out. Warns about
    unknown roles. Raises `UsageError` if the prompt is not a list of messages, and `DataError` for
    a message that training would refuse.
    """
    turns = json_form(prompt)
    if (
        not isinstance(turns, Sequence)
        or isinstance(turns, str | bytes)
        or not all(isinstance(m, Mapping) for m in turns)
    ):
        raise UsageError("a prompt must be a string, or a list of messages with role and content")
    if not turns:
        raise UsageError("nothing to complete: the prompt has no messages")
    counts = Counts.empty()
    record = with_roles({"messages": [json_form(dict(m)) for m in turns]}, counts)
    for i, message in enumerate(record["messages"], 1):
        calls = message.get("tool_calls") or message.get("function_call")
        if not isinstance(message.get("role"), str) or not ("content" in message or calls):
            keys = shown(", ".join(map(str, message)), 80)
            raise UsageError(f"message {i} of the prompt has no role or no content (keys: {keys})")
    if counts.other_roles:
        listed = ", ".join(counts.other_roles)
        warnings.warn(f"the chat template receives unknown roles: {listed}", stacklevel=5)
    return messages_of(record, "messages")[0]
