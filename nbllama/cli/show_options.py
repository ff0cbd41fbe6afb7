"""The options of `python -m nbllama.show_data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nbllama.cli.common_options import debug_option
from nbllama.cli.data_options import (
    chat_template_option,
    data_columns_option,
    data_format_option,
    on_long_option,
    skip_bad_option,
    template_date_option,
    train_on_prompt_option,
)
from nbllama.cli.parser import Text, Whole, option, parse_into
from nbllama.errors import UsageError

PROG = "python -m nbllama.show_data"
ABOUT = """Show what training makes of a file: its first samples token by token, with the tokens
marked that are trained, and statistics of all of them."""

_show = partial(option, "Show")


@dataclass(frozen=True)
class ShowOptions:
    """A parsed command line; the options of data are those of `nbllama.finetune`."""

    model_base: str = _show(
        Text(), "", "model whose tokenizer and chat template are used, a GGUF file", also=["-m"],
        shown_default="none, must be given",
    )  # fmt: skip
    train_data: str = _show(
        Text(), "", "training data, a file or a folder with train.jsonl",
        shown_default="none, must be given",
    )  # fmt: skip
    samples: int = _show(Whole(), 3, "samples to print", also=["-n"])
    batch: int = _show(Whole(1, 65536), 8, "batch size that the statistics are for", also=["-b"])
    ctx: int | None = _show(
        Whole(1, 2**24), None, "longest sample, in tokens", also=["-c"],
        shown_default="128 for plain text, 512 for records",
    )  # fmt: skip
    debug: bool = debug_option("Show")
    data_format: str | None = data_format_option()
    data_columns: str = data_columns_option()
    chat_template: str = chat_template_option()
    template_date: str | None = template_date_option()
    train_on_prompt: bool = train_on_prompt_option()
    on_long: str = on_long_option()
    skip_bad: bool = skip_bad_option()


def parse(argv: Sequence[str]) -> ShowOptions:
    """The options of a command line. Raises `UsageError`; `--help` raises `SystemExit(0)`."""
    options = parse_into(
        ShowOptions, argv, prog=PROG, about=ABOUT, familiar={"--model": "--model-base"}
    )
    for name in ("model_base", "train_data"):
        if not getattr(options, name):
            raise UsageError(f"give --{name.replace('_', '-')} FILE; --help lists every option")
    return options
