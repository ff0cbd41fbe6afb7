"""The program: `python -m nbllama.finetune`.

It reads a model, an adapter or checkpoint and data, forecasts, trains, and saves. Options:
`nbllama.options.finetune.table`.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from nbllama.options.finetune.table import Options, parse
from nbllama.system.program import run_program
from nbllama.train.run.stop import StopFlag


def _run(words: list[str]) -> None:
    if "--list-archs" in words or "--list_archs" in words:
        from nbllama.cli.archs import table

        print(table())
        return
    options, stop = parse(words), StopFlag()
    with stop.installed(), ExitStack() as stack:
        _train(options, words, stop, stack)


def _train(options: Options, words: list[str], stop: StopFlag, stack: ExitStack) -> None:
    from nbllama.kernels.cores import use_threads

    threads = use_threads(options.threads)
    from nbllama.cli.ui import Display
    from nbllama.train.run.loop import Loop
    from nbllama.train.run.outputs import Outputs
    from nbllama.train.run.session import Session
    from nbllama.train.run.write_lora import write_lora

    outputs = Outputs(options)
    if not options.dry_run:
        outputs.claim(stack)
    board = None
    if options.tensorboard and not options.dry_run:
        from nbllama.train.run.board import Board

        board = Board(options.tensorboard)
    ui = stack.enter_context(Display(log="" if options.dry_run else outputs.log, board=board))
    if options.only_write_lora:
        write_lora(options, outputs, ui)
        return
    session = Session(options, words, threads, outputs, ui, stop)
    told = session.forecast()
    if not options.dry_run:
        Loop(session).run(told)


main = partial(run_program, _run)
