"""The kinds of samples that records are converted to, and checks shared by all formats.

A format is a function that converts a record (a JSON object, or a table row keyed by column name)
to a `Sample`. It raises `DataError` with only the reason; the caller adds the file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from nbllama.errors import DataError, shown
from nbllama.text.variables import RESERVED, variable_value

Record = dict[str, Any]
Message = dict[str, Any]
"""A message as a server receives it: "role" and "content", both strings, and optionally
"tool_calls" (a list of {"id", "type", "function": {"name", "arguments", "text"}}, where `text` is
the arguments as written in the record), the thought under each of `nbllama.text.thoughts.KEYS`,
"name" and "tool_call_id".
"""

ANSWERING_ROLE = "assistant"

_DEEPEST = 64  # levels of lists and objects


class Conversation(NamedTuple):
    """Messages for a chat template.

    `silent` contains the indices of the assistant messages that are read but not trained.
    `tools` are in the form that a server receives. `variables` are template variables for this
    chat. `notices` contains keys of `nbllama.data.notices.READ`, which describe what was not read
    exactly as written. `n_first` is the number of messages at the start that do not come
    from the record's list of messages.
    """

    messages: list[Message]
    silent: frozenset[int] = frozenset()
    tools: list[Any] | None = None
    variables: dict[str, Any] | None = None
    notices: tuple[str, ...] = ()
    n_first: int = 0


class Continuation(NamedTuple):
    """Plain text without a template: a prompt, which can be empty, and the text to generate."""

    prompt: str
    answer: str


Plain = Conversation | Continuation


class Pair(NamedTuple):
    """Two answers to one prompt, of which `chosen` is preferred; `weight` scales the loss."""

    chosen: Plain
    rejected: Plain
    weight: float = 1.0


class Labelled(NamedTuple):
    """An answer labelled as good or bad; `weight` scales the loss."""

    answer: Plain
    good: bool
    weight: float = 1.0


Sample = Plain | Pair | Labelled


def plain_ones(samples: Iterable[Sample]) -> Iterator[Plain]:
    """Yield each answer with its prompt: two for a pair, and one for any other sample."""
    for sample in samples:
        if isinstance(sample, Pair):
            yield sample.chosen
            yield sample.rejected
        else:
            yield sample.answer if isinstance(sample, Labelled) else sample


class Style(NamedTuple):
    """The rules for combining an instruction and an input (`nbllama.text.templates.Layout`)."""

    joint: str = "\n\n"
    with_input: str = ""


class Format(NamedTuple):
    """A format: its name, the keys that identify its records, and the function that reads a record.

    `suits` is an additional condition that records of this format must meet.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Record, Style], Sample]
    suits: Callable[[Record], bool] = bool

    def knows(self, record: Record) -> bool:
        """Return whether a record has all keys of the format; null values count as missing."""
        return all(record.get(key) is not None for key in self.keys) and self.suits(record)


def conversation(
    messages: list[Message],
    silent: frozenset[int] = frozenset(),
    record: Record | None = None,
    notices: tuple[str, ...] = (),
    *,
    n_first: int = 0,
) -> Conversation:
    """Create a conversation with the tools and template variables from its record.

    Raises `DataError` if it contains nothing to train on.
    """
    answers = [i for i, m in enumerate(messages) if m["role"] == ANSWERING_ROLE]
    if not answers:
        raise DataError(f'there is no message with the role "{ANSWERING_ROLE}" to train on')
    for i in answers:
        if not messages[i]["content"].strip() and not messages[i].get("tool_calls"):
            raise DataError(f"message {i + 1 - n_first}: the answer is empty")
    if silent.issuperset(answers):
        raise DataError("every answer is excluded from training")
    tools = tools_of(record) if record is not None else None
    variables = variables_of(record) if record is not None else None
    return Conversation(messages, silent, tools, variables, notices, n_first)


def tools_of(record: Record) -> list[Any] | None:
    """Return the tools under "tools" or the older "functions" (a list, or a list as JSON text).

    A bare function is wrapped in {"type": "function", "function": ...}, as servers require.
    Raises `DataError`.
    """
    key = next((key for key in ("tools", "functions") if record.get(key)), None)
    if key is None:
        return None
    tools = record[key]
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as e:
            raise DataError(f'"{key}" is not valid JSON') from e
    if not tools:
        return None
    if not isinstance(tools, list):
        raise DataError(f'"{key}" must be a list, not {kind_of(tools)}')
    out = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f'"{key}" contains an entry that is not a function with a name')
        framed = tool if "function" in tool else {"type": "function", "function": tool}
        out.append(framed)
    check_json(out, f'"{key}"')
    return out


def variables_of(record: Record) -> dict[str, Any] | None:
    """Return the template variables under "chat_template_kwargs". Raises `DataError`."""
    value = record.get("chat_template_kwargs")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise DataError('"chat_template_kwargs" is not valid JSON') from e
    if not value:
        return None
    if not isinstance(value, dict):
        raise DataError(f'"chat_template_kwargs" must be an object, not {kind_of(value)}')
    for name in value:
        if name in RESERVED or not name.isidentifier():
            raise DataError(f'"chat_template_kwargs" must not set "{shown(name, 40)}"')
    check_json(value, '"chat_template_kwargs"')
    try:
        return {name: variable_value(name, v) for name, v in value.items()}
    except ValueError as e:
        raise DataError(f'"chat_template_kwargs": {e}') from None


def weight_of(record: Record) -> float:
    """Return the loss weight of a record, which defaults to 1. Raises `DataError`."""
    value = record.get("weight")
    if value is None:
        return 1.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise DataError('"weight" must be a number above 0')
    return float(value)


def text_of(record: Record, key: str, where: str = "", *, default: str | None = None) -> str:
    """Return the text under `key`.

    Returns `default`, if it is given, for a missing key or a null value.

    Raises `DataError` if the key is missing, or if the value is not text or contains an unpaired
    surrogate.
    """
    value = record.get(key)
    if value is None and default is not None:
        return default
    if key not in record:
        raise DataError(f'{where}the key "{key}" is missing')
    if not isinstance(value, str):
        raise DataError(f'{where}"{key}" must be text, not {kind_of(value)}')
    if not value.isascii():
        check_unicode(value, f'{where}"{key}"')
    return value


def filled(value: str, what: str) -> str:
    """Return `value`, which must not be empty.

    Raises `DataError` ("`what` is empty") if `value` contains only white space.
    """
    if not value.strip():
        raise DataError(f"{what} is empty")
    return value


def check_unicode(value: str, what: str) -> None:
    """Raise `DataError` for an unpaired surrogate, which JSON can represent but UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(
            f"{what} must not contain an unpaired surrogate (character {e.start})"
        ) from e


def check_json(value: Any, what: str) -> None:
    """Raise `DataError` if a value is nested too deeply or contains an unpaired surrogate."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for v in level
            if isinstance(v, dict | list)
            for part in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            break
    else:
        raise DataError(f"{what} must not be nested more than {_DEEPEST} levels deep")
    check_unicode(json.dumps(value, ensure_ascii=False), what)


def kind_of(value: object) -> str:
    """Return the JSON name for the type of a value."""
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
    known = (name for kind, name in names.items() if isinstance(value, kind))
    return next(known, f"a value of type {type(value).__name__}")


def keys_of(record: Record) -> str:
    """Return the keys of a record as text for an error message."""
    return shown(", ".join(record) or "none", 80)
