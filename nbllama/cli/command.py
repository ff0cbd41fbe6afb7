"""The command `nbllama VERB ...`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

import nbllama
from nbllama.cli.verbs import ALSO, VERBS
from nbllama.errors import UsageError, shown
from nbllama.system.program import called, called_as, run_program

_HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None, name: str = "nbllama") -> int:
    """Run the program that a verb selects; return its exit code (see `nbllama.errors`).

    `name` is the name that help texts use for this command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"] and len(words) == 2:
        words = [words[1], "--help"]
    verb = plain(words[0]) if words else ""
    if verb not in VERBS:
        with called(name):
            return run_program(_no_verb, words)
    with called(f"{name} {verb}"):
        code: int = import_module(VERBS[verb][0]).main(words[1:])
        return code


def plain(word: str) -> str:
    """Return a verb as spelled in the table: in lower case, and with `-` instead of `_`."""
    return word.replace("_", "-").lower()


def usage() -> str:
    """Return the usage text, which lists the verbs, one per line."""
    name, width = called_as("nbllama"), max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {what}" for verb, (_, what) in VERBS.items()]
    head = f"usage: {name} VERB [options], {name} --version\n"
    head += "\nLoRA training of quantised GGUF models on CPUs.\n"
    foot = f"\n`{name} VERB --help` lists the options of a verb."
    return "\n".join([head, *lines, foot])


def _no_verb(words: list[str]) -> None:
    if not words or words[0] in _HELP:
        print(usage())
    elif words[0] == "--version":
        print(f"nbllama {nbllama.__version__}")
    else:
        raise UsageError(f"unknown verb '{shown(words[0])}'; {_hint(words[0])}")


def _hint(word: str) -> str:
    name = called_as("nbllama")
    if word.startswith("-"):
        return f"the verb comes first; {name} --help lists the verbs"
    word = plain(word).removesuffix(".py").removesuffix(".exe")
    near = difflib.get_close_matches(word, [*VERBS, *ALSO], n=1, cutoff=0.7)
    if not near:
        return f"{name} --help lists the verbs"
    return f"did you mean `{name} {ALSO.get(near[0], near[0])}`?"
