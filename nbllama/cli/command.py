"""The command `nbllama VERB ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import nbllama
from nbllama.cli.verbs import VERBS
from nbllama.errors import UsageError, shown
from nbllama.system.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program of a verb; the exit code (see `nbllama.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0].replace("_", "-") if words else ""
    if verb in VERBS:
        code: int = import_module(VERBS[verb][0]).main(words[1:])
        return code
    return run_program(_no_verb, words)


def usage() -> str:
    """The verbs, one a line."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items()]
    head = "usage: nbllama VERB [OPTIONS]\n\n`nbllama VERB --help` lists the options of a verb.\n"
    return "\n".join([head, *lines])


def _no_verb(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if words[0] == "--version":
        print(f"nbllama {nbllama.__version__}")
        return
    raise UsageError(f"there is no verb {shown(words[0])}; nbllama --help lists the verbs")
