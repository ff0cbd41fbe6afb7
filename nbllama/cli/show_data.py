"""The program `python -m nbllama.show_data`, which shows how the trainer reads a data file.

It prints some samples token by token, marks the tokens that contribute to the loss, and prints
statistics. The work is done in `nbllama.cli.samples`.
"""

from __future__ import annotations

from functools import partial

from nbllama.options.show_data import parse
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    options = parse(words)
    from nbllama.cli.samples import show

    show(options)


main = partial(run_program, _run)
