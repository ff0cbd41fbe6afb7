"""Options for reading the records in a training file, shared by all programs that read such files.

The choices are duplicated here because `nbllama.data`, which defines them, requires numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from nbllama.options.parser import Saved, option
from nbllama.options.values import Choice, Day, Text, Variables

FORMATS = (
    "raw", "chat", "sharegpt", "preference", "labelled", "completion", "alpaca", "text", "csv",
)  # fmt: skip
ON_LONG = ("cut", "refuse", "skip")
LAYOUTS = tuple("alpaca baichuan chatml llama-2 llama-3".split())

record_option = partial(option, "Training data")


class DataOptions(Protocol):
    """The options that `nbllama.train.run.data.load_file` needs."""

    @property
    def ctx(self) -> int | None:
        """Context length in tokens, or None for the default."""
        ...

    @property
    def data_format(self) -> str | None:
        """Format of the file, or None to detect it from the contents."""
        ...

    @property
    def data_columns(self) -> str:
        """The names that the file uses instead of the usual keys of its format."""
        ...

    @property
    def chat_template(self) -> str:
        """Name or file of a chat template, or "" for the model's own template."""
        ...

    @property
    def template_date(self) -> str | None:
        """The date passed to chat templates, as YYYY-MM-DD, or None for today."""
        ...

    @property
    def train_on_prompt(self) -> bool:
        """Whether to train on prompts as well."""
        ...

    @property
    def parse_special(self) -> bool:
        """Whether to convert text that spells a control token into that token."""
        ...

    @property
    def skip_bad(self) -> bool:
        """Whether to skip bad records."""
        ...

    @property
    def on_long(self) -> str:
        """How to treat samples that are too long."""
        ...

    @property
    def template_vars(self) -> str:
        """The template variables, in the syntax of `parse_variables`."""
        ...

    @property
    def system_as_user(self) -> bool:
        """Whether to prepend a system message to the first question.

        Used only if the template has no system role.
        """
        ...


@dataclass(frozen=True)
class RecordOptions:
    """The options that control how records are read."""

    data_format: str | None = record_option(
        Choice(FORMATS),
        None,
        "what --train-data contains: plain text, or records in one of these formats",
        shown_default="detected from the contents",
    )
    data_columns: str = record_option(
        Text("KEY=NAME,..."),
        "",
        "key names in the file, if they differ from the format's own, such as "
        "prompt=question,completion=answer",
        shown_default="the format's own",
        only="records",
    )
    chat_template: str = record_option(
        Text("NAME|FILE"),
        "",
        f"chat template: a file, or one of {', '.join(LAYOUTS)}",
        shown_default="the model's own",
        only="records",
        file="reads",
    )
    template_date: str | None = record_option(
        Day(),
        None,
        "date to pass to the chat template, if the template uses one",
        shown_default="the start date of the run",
        saved=Saved(25, taken=True),
    )
    template_vars: str = record_option(
        Variables(),
        "",
        "variables for the chat template, such as enable_thinking=false; values are JSON or text",
        shown_default="none",
        only="records",
    )
    system_as_user: bool = record_option(
        None,
        False,
        "prepend a system message to the first question if the chat template has no system role",
        only="records",
    )
    train_on_prompt: bool = record_option(
        None,
        False,
        "compute the loss on every token of a record, not only on the answers",
        only="records",
    )
    parse_special: bool = record_option(
        None,
        False,
        "in documents and completions, convert text that spells a control token into that token",
        only="records",
    )
    on_long: str = record_option(
        Choice(ON_LONG),
        "cut",
        "what to do with a record longer than --ctx tokens",
        only="records",
    )
    skip_bad: bool = record_option(
        None,
        False,
        "skip and count bad records instead of refusing the file",
        only="records",
    )
