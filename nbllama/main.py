"""The program: `python -m nbllama.main`, which goes on with a text or chats.

Options: `nbllama.cli.main_options`. What happens: `nbllama.cli.main_run`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbllama.cli.cores import use_threads
from nbllama.cli.main_options import parse_main
from nbllama.cli.run import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_main(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli import main_run

    main_run.run(asked, threads)


if __name__ == "__main__":
    sys.exit(main())
