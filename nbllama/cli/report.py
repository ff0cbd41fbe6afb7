"""The program: `python -m nbllama.report LOG OUT.html`, the page about a run from its log."""

from __future__ import annotations

from functools import partial

from nbllama.options.report import parse
from nbllama.report.write import write_report
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    write_report(*parse(words))


main = partial(run_program, _run)
