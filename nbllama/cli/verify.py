"""The program: `python -m nbllama.verify`, which checks what an adapter does.

Options: `nbllama.options.verify`. The checks: `nbllama.cli.checks`.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbllama.kernels.cores import use_threads
from nbllama.options.verify import parse_verify
from nbllama.system.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_verify(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli.checks import verify

    verify(asked, threads)
