"""`python -m nbllama.report LOG OUT.html`: the page about a run, made again from its log."""

from __future__ import annotations

from collections.abc import Sequence

from nbllama.errors import UsageError
from nbllama.report.write import write_report
from nbllama.system.program import run_program

USAGE = """usage: python -m nbllama.report LOG OUT.html

Make the page about a run from its log, the file of --log. OUT.html is one file without a script
that needs nothing else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return
    names = [word for word in words if word != "--debug"]
    if len(names) != 2 or any(name.startswith("-") for name in names):
        raise UsageError("give a log and the name of the page: LOG OUT.html")
    write_report(*names)
