"""The program `python -m nbllama.verify`, which checks the effect of an adapter.

The options are in `nbllama.options.verify`, and the checks are in `nbllama.cli.checks`.
"""

from __future__ import annotations

from functools import partial

from nbllama.kernels.cores import use_threads
from nbllama.options.verify import parse_verify
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    asked = parse_verify(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli.checks import verify

    verify(asked, threads)


main = partial(run_program, _run)
