"""The program: `python -m nbllama.main`, which goes on with a text or chats.

Options: `nbllama.options.chat`. What happens: `nbllama.cli.chat.run`.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbllama.kernels.cores import use_threads
from nbllama.options.chat import parse_main
from nbllama.system.program import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_main(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli.chat import run as main_run

    main_run.run(asked, threads)
