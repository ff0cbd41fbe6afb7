"""The program: `python -m nbllama.finetune`.

It reads a model, an adapter or checkpoint and data, forecasts, trains, and saves. Options:
`nbllama.cli.options`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from nbllama.cli.options import Options, parse
from nbllama.cli.run import run_program
from nbllama.cli.stop import StopFlag


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    if "--list-archs" in words or "--list_archs" in words:
        from nbllama.cli.archs import table

        print(table())
        return
    options, stop = parse(words), StopFlag()
    with stop.installed(), ExitStack() as stack:
        _train(options, words, stop, stack)


def _train(options: Options, words: list[str], stop: StopFlag, stack: ExitStack) -> None:
    from nbllama.cli.cores import use_threads

    threads = use_threads(options.threads)
    from nbllama.cli.export import write_lora
    from nbllama.cli.loop import Loop
    from nbllama.cli.outputs import Outputs
    from nbllama.cli.session import Session
    from nbllama.cli.ui import Display

    outputs = Outputs(options)
    if not options.dry_run:
        outputs.claim(stack)
    board = None
    if options.tensorboard and not options.dry_run:
        from nbllama.cli.board import Board

        board = Board(options.tensorboard)
    ui = stack.enter_context(Display(log="" if options.dry_run else outputs.log, board=board))
    if options.only_write_lora:
        write_lora(options, outputs, ui)
        return
    session = Session(options, words, threads, outputs, ui, stop)
    told = session.forecast()
    if not options.dry_run:
        Loop(session).run(told)


if __name__ == "__main__":
    sys.exit(main())
