"""The command line of `python -m nbllama.peek`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.common import debug_option
from nbllama.options.familiar.others import PEEK
from nbllama.options.parser import option, parse_into, table
from nbllama.options.values import Choice, Real, Text, Whole
from nbllama.options.words import take_words

PROG = "python -m nbllama.peek"
ABOUT = """Show arrays by name, from a dump (.npz, written by --dump of nbllama.finetune and
nbllama.main, or by nbllama.peek.watch), a GGUF model (decoded), a checkpoint or an adapter."""
EPILOG = """PATTERN: a name that may contain the wildcards *, ? and [], such as 'blk.0.*',
'kq_soft_max-*' or 't07-3'. Separate multiple patterns with spaces or commas.

exit codes: 0 success, 1 diff found differences, 2 bad usage or bad file, 3 output cannot be
written, 4 out of memory, 5 checkpoint or adapter is damaged"""

_show = partial(option, "Show")
_diff = partial(option, "diff")


@dataclass(frozen=True)
class PeekOptions:
    """The options of `peek`, except for the positional arguments."""

    values: int = _show(Whole(), 0, "print the first N numbers of each array", also=["-n"])
    picture: str = _show(
        Text(),
        "",
        "write a picture (.svg, .png or .pdf) to this file; requires matplotlib",
        shown_default="none",
    )
    kind: str = _show(
        Choice(("auto", "histogram", "heat", "attention")), "auto",
        "what to draw; auto: attention maps for kq_soft_max, histograms for all other arrays",
    )  # fmt: skip
    head: int | None = _show(
        Whole(), None, "draw only this head of an attention map", shown_default="all"
    )
    json: bool = _show(None, False, "print a JSON document instead of a table")
    tolerance: float = _diff(
        Real(), 0.0, "treat arrays as equal if their largest difference is at most this fraction "
                     "of the largest absolute value in A",
    )  # fmt: skip
    all: bool = _diff(None, False, "also list equal arrays")
    debug: bool = debug_option("Show")


@dataclass(frozen=True)
class Asked:
    """A parsed command line; `files` contains one file to show or two files to compare."""

    options: PeekOptions
    files: tuple[str, ...]
    patterns: tuple[str, ...] = field(default=())


def parse(argv: Sequence[str]) -> Asked:
    """Parse a command line.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    words, rest = take_words(argv, table(PeekOptions))
    options = parse_into(
        PeekOptions, rest, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=PEEK,
        forms=["FILE [PATTERN ...]", "diff A B [PATTERN ...]"],
    )  # fmt: skip
    compare = words[:1] == ["diff"]
    files = words[1:3] if compare else words[:1]
    if len(files) != 1 + compare:
        raise UsageError("pass FILE [PATTERN ...] or diff A B [PATTERN ...]; see --help")
    if compare and options.picture:
        raise UsageError("--picture draws the arrays of one file and cannot be used with diff")
    return Asked(options, tuple(files), tuple(words[1 + 2 * compare :]))
