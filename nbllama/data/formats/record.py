"""What a record of a training file becomes, and what every format checks.

A format is a function from a record (an object of JSON, or a row of a table by its column names) to
a `Conversation` or a `Continuation`. It raises `DataError` with the reason alone; whoever read the
record knows file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.errors import DataError, shown

Record = dict[str, Any]
Message = dict[str, str]  # "role" and "content"

ANSWERING_ROLE = "assistant"


class Conversation(NamedTuple):
    """Messages for a chat template. `silent`: numbers (from 0) of assistant messages that are read
    but not trained.
    """

    messages: list[Message]
    silent: frozenset[int] = frozenset()


class Continuation(NamedTuple):
    """Plain text without a template: a prompt, perhaps empty, and what the model has to write."""

    prompt: str
    answer: str


Sample = Conversation | Continuation


class Style(NamedTuple):
    """How an instruction with an input becomes one message: see `nbllama.text.templates.Layout`."""

    joint: str = "\n\n"
    with_input: str = ""


class Format(NamedTuple):
    """One format: its name, the keys by which a record is known, and the function."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[Record, Style], Sample]


def conversation(messages: list[Message], silent: frozenset[int] = frozenset()) -> Conversation:
    """A conversation, once there is something in it to train. Raises `DataError`."""
    answers = [i for i, m in enumerate(messages) if m["role"] == ANSWERING_ROLE]
    if not answers:
        raise DataError(f'there is no message of the role "{ANSWERING_ROLE}" to train on')
    for i in answers:
        if not messages[i]["content"].strip():
            raise DataError(f"message {i + 1}: the answer is empty")
    if silent.issuperset(answers):
        raise DataError("every answer has the weight 0: nothing to train on")
    return Conversation(messages, silent)


def text_of(record: Record, key: str, where: str = "", *, default: str | None = None) -> str:
    """The text under `key`; null and a missing key count as `default` if there is one.

    Raises `DataError` for a missing key, another type than text, and half a surrogate pair.
    """
    value = record.get(key)
    if value is None and default is not None:
        return default
    if key not in record:
        raise DataError(f'{where}the key "{key}" is missing')
    if not isinstance(value, str):
        raise DataError(f'{where}"{key}" must be text, not {kind_of(value)}')
    check_unicode(value, f'{where}"{key}"')
    return value


def filled(value: str, what: str) -> str:
    """`value`, which must be more than white space; else `DataError` "`what` is empty"."""
    if not value.strip():
        raise DataError(f"{what} is empty")
    return value


def check_unicode(value: str, what: str) -> None:
    """Raise `DataError` for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(f"{what} holds half a surrogate pair at character {e.start}") from e


def kind_of(value: object) -> str:
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
    return names.get(type(value), f"a value of type {type(value).__name__}")


def keys_of(record: Record) -> str:
    """A record's keys for an error's line."""
    return shown(", ".join(record) or "none", 80)
