"""The program `python -m nbllama.main`, which completes text or chats with a user.

The options are in `nbllama.options.chat`, and the work is done in `nbllama.cli.chat.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nbllama.kernels.cores import use_threads
from nbllama.options.chat import Main, parse_main
from nbllama.system.program import run_program


def run(words: list[str], parse: Callable[[Sequence[str]], Main] = parse_main) -> None:
    """Parse the command-line arguments with `parse`, and run the program."""
    asked = parse(words)
    threads = use_threads(asked.options.threads)
    from nbllama.cli.chat import run as main_run

    main_run.run(asked, threads)


main = partial(run_program, run)
