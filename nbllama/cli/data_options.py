"""Options about the records of a training file, wherever a program reads one.

The words are written out here and not taken from `nbllama.data`, which needs numpy.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from nbllama.cli.parser import Choice, Day, Text, option

FORMATS = ("raw", "chat", "sharegpt", "completion", "alpaca", "text", "csv")
ON_LONG = ("cut", "refuse", "skip")
LAYOUTS = tuple("alpaca baichuan chatml llama-2 llama-3".split())

_records = partial(option, "Training data")


class DataOptions(Protocol):
    """What `nbllama.cli.data.load_file` needs of a program's options."""

    @property
    def ctx(self) -> int | None: ...
    @property
    def data_format(self) -> str | None: ...
    @property
    def data_columns(self) -> str: ...
    @property
    def chat_template(self) -> str: ...
    @property
    def template_date(self) -> str | None: ...
    @property
    def train_on_prompt(self) -> bool: ...
    @property
    def skip_bad(self) -> bool: ...
    @property
    def on_long(self) -> str: ...


def data_format_option() -> Any:
    """The field `data_format`."""
    text = "what --train-data holds: plain text, or records in one of these formats"
    return _records(Choice(FORMATS), None, text, shown_default="told from the content")


def data_columns_option() -> Any:
    """The field `data_columns`."""
    text = "the file's names for a format's keys, such as prompt=question,completion=answer"
    return _records(Text("KEY=NAME,..."), "", text, shown_default="the format's own")


def chat_template_option() -> Any:
    """The field `chat_template`."""
    text = f"chat template: a file, or one of {', '.join(LAYOUTS)}"
    return _records(Text("NAME|FILE"), "", text, shown_default="the model's own")


def template_date_option() -> Any:
    """The field `template_date`."""
    text = "the day that a chat template is told, if it writes one"
    return _records(Day(), None, text, shown_default="the day on which the run began")


def train_on_prompt_option() -> Any:
    """The field `train_on_prompt`."""
    return _records(None, False, "take the loss on every token of a record, not on answers only")


def skip_bad_option() -> Any:
    """The field `skip_bad`."""
    return _records(None, False, "skip and count bad records instead of refusing the file")


def on_long_option() -> Any:
    """The field `on_long`."""
    text = "what to do with a record longer than --ctx tokens"
    return _records(Choice(ON_LONG), "cut", text)
