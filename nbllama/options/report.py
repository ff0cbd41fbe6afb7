"""The command line of `python -m nbllama.report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbllama.errors import UsageError
from nbllama.options.common import debug_option
from nbllama.options.parser import parse_into, table
from nbllama.options.words import take_words

PROG = "python -m nbllama.report"
ABOUT = """Make the page about a run from its log, the file of --log. OUT.html is one file without a
script that needs nothing else."""
EPILOG = "exit codes: 0 done, 2 bad usage or a bad log, 3 path that cannot be written"
_WORDS = "give the files as words: LOG OUT.html"
_FAMILIAR = dict.fromkeys(("--log", "--output", "-o", "--out", "--report", "--input"), _WORDS)


@dataclass(frozen=True)
class ReportOptions:
    """A parsed command line, except for its two words."""

    debug: bool = debug_option("Options")


def parse(argv: Sequence[str]) -> tuple[str, str]:
    """Return the log and the page's name. Raises `UsageError`; `--help` raises `SystemExit(0)`."""
    names, rest = take_words(argv, table(ReportOptions))
    parse_into(
        ReportOptions, rest, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=_FAMILIAR,
        forms=["LOG OUT.html"],
    )  # fmt: skip
    if len(names) != 2 or not all(names):
        raise UsageError("give a log and the name of the page: LOG OUT.html")
    return names[0], names[1]
