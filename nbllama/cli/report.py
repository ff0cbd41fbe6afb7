"""The program `python -m nbllama.report`, which writes a page about one or more runs."""

from __future__ import annotations

from functools import partial

from nbllama.errors import shown
from nbllama.options.report import parse
from nbllama.report.write import write_report
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    logs, page = parse(words)
    write_report(logs, page)
    if page not in words:
        print(shown(page, 400))


main = partial(run_program, _run)
