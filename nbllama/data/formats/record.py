"""The kinds of samples that records are converted to.

A format is a function that converts a record (a JSON object, or a table row keyed by column name)
to a `Sample`. It raises `DataError` with only the reason; the caller adds the file and line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from nbllama.data.formats.checks import Record
from nbllama.data.formats.joined import as_numbered
from nbllama.data.formats.tools import tools_of, variables_of
from nbllama.errors import DataError

Message = dict[str, Any]
"""A message as a server receives it: "role" and "content", both strings, and optionally
"tool_calls" (a list of {"id", "type", "function": {"name", "arguments", "text"}}, where `text` is
the arguments as written in the record), the thought under each of `nbllama.text.thoughts.KEYS`,
"name" and "tool_call_id".
"""

ANSWERING_ROLE = "assistant"


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
            hint = as_numbered(notices)
            raise DataError(f"message {i + 1 - n_first}: the answer is empty{hint}")
    if silent.issuperset(answers):
        raise DataError("every answer is excluded from training")
    tools = tools_of(record) if record is not None else None
    variables = variables_of(record) if record is not None else None
    return Conversation(messages, silent, tools, variables, notices, n_first)


def weight_of(record: Record) -> float:
    """Return the loss weight of a record, which defaults to 1. Raises `DataError`."""
    value = record.get("weight")
    if value is None:
        return 1.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise DataError('"weight" must be a number above 0')
    return float(value)
