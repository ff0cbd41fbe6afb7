"""`python -m nbllama.show_data`: what a trainer makes of a file of training data.

Prints the first samples token by token, those marked that the loss is taken on, and statistics.
The program only; `nbllama.cli.samples` does it.
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
