"""The command line of `python -m nbllama.report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from nbllama.errors import UsageError, shown
from nbllama.options.common import debug_option
from nbllama.options.parser import parse_into, table
from nbllama.options.words import take_words

PROG = "python -m nbllama.report"
ABOUT = """Generate a page about a run from its log (the --log file), or a page that compares
several runs. The page is a single file without external resources."""
EPILOG = """An argument that ends in .html names the page. Without one, the page is written next
to the first log, as RUN.html or A-vs-B.html. An existing page is replaced only if an argument
names it.

exit codes: 0 success, 2 bad usage or a bad log, 3 output cannot be written"""
_WORDS = "pass the files as arguments: LOG OUT.html, or LOG LOG ... OUT.html"
_FAMILIAR = dict.fromkeys(("--log", "--output", "-o", "--out", "--report", "--input"), _WORDS)


@dataclass(frozen=True)
class ReportOptions:
    """The options of `report`, except for the positional arguments."""

    debug: bool = debug_option("Options")


def parse(argv: Sequence[str]) -> tuple[list[str], str]:
    """Parse the names of the logs and the page.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    names, rest = take_words(argv, table(ReportOptions))
    parse_into(
        ReportOptions, rest, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=_FAMILIAR,
        forms=["LOG [OUT.html]", "LOG LOG ... [OUT.html]"],
    )  # fmt: skip
    pages = [name for name in names if is_page(name)]
    logs = [name for name in names if not is_page(name)]
    if not logs or not all(names):
        raise UsageError("pass a log and the name of the page: LOG OUT.html")
    if len(pages) > 1:
        raise UsageError(f"{shown(pages[0])} and {shown(pages[1])} are both pages; name only one")
    for i, log in enumerate(logs):
        if os.path.realpath(log) in map(os.path.realpath, logs[:i]):
            raise UsageError(f"{shown(log, 400)} is given twice; name each log once")
    return logs, pages[0] if pages else _new_page(logs)


def is_page(name: str) -> bool:
    """Return whether a word is the name of a page."""
    return name.lower().endswith((".html", ".htm"))


def _new_page(logs: Sequence[str]) -> str:
    """Return the name of a page next to the first log. Raises `UsageError` if the file exists."""
    stems = [os.path.splitext(os.path.basename(log))[0] for log in logs]
    name = os.path.join(os.path.dirname(logs[0]), f"{'-vs-'.join(stems)[:200]}.html")
    if os.path.lexists(name):
        raise UsageError(f"{shown(name, 400)} already exists; name it in the command to replace it")
    return name
