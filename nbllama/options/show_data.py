"""The options of `python -m nbllama.show_data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.common import debug_option
from nbllama.options.data import RecordOptions
from nbllama.options.familiar.others import SHOW_DATA
from nbllama.options.parser import option, parse_into
from nbllama.options.values import Text, Whole

PROG = "python -m nbllama.show_data"
ABOUT = """Show how training reads a file. Prints some samples token by token, with the trained
tokens marked, and statistics for all samples."""

_show = partial(option, "Show")


@dataclass(frozen=True)
class _ShowOptions:
    """Options that select the files to read and what to show."""

    model_base: str = _show(
        Text(), "", "GGUF model whose tokenizer and chat template are used", also=["-m"],
        shown_default="none; required",
    )  # fmt: skip
    train_data: str = _show(
        Text(), "", "training data, a file or a folder with train.jsonl",
        shown_default="none; required",
    )  # fmt: skip
    samples: int | None = _show(
        Whole(),
        None,
        "number of samples to print, starting with the first",
        also=["-n"],
        shown_default="3 of different kinds; all with --json",
    )
    json: bool = _show(
        None, False, "print one JSON object per sample and nothing else on standard output"
    )
    batch: int = _show(Whole(1, 65536), 8, "batch size for the statistics", also=["-b"])
    ctx: int | None = _show(
        Whole(1, 2**24), None, "maximum length of a sample, in tokens", also=["-c"],
        shown_default="128 for plain text, 512 for records",
    )  # fmt: skip
    debug: bool = debug_option("Show")


@dataclass(frozen=True)
class ShowOptions(_ShowOptions, RecordOptions):
    """A parsed command line; the options for records are the same as for `nbllama.finetune`."""


def parse(argv: Sequence[str]) -> ShowOptions:
    """Parse a command line.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    options = parse_into(ShowOptions, argv, prog=PROG, about=ABOUT, familiar=SHOW_DATA)
    for name in ("model_base", "train_data"):
        if not getattr(options, name):
            raise UsageError(f"pass --{name.replace('_', '-')} FILE; --help lists every option")
    return options
