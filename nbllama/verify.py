"""The program: `python -m nbllama.verify`, which checks what an adapter does.

Options: `nbllama.cli.verify_options`. The checks: `nbllama.cli.checks`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbllama.cli.cores import use_threads
from nbllama.cli.run import run_program
from nbllama.cli.verify_options import parse_verify


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_verify(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli.checks import verify

    verify(asked, threads)


if __name__ == "__main__":
    sys.exit(main())
