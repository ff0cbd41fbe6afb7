"""One run, from its options to its result; the caller provides the screen.

Both `python -m nbllama.finetune` and `nbllama.tune` call `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from nbllama.adapter.savable import Adapter
from nbllama.options.finetune.table import Options
from nbllama.train.live.watching import watching
from nbllama.train.run.board import Board
from nbllama.train.run.clock import Clock
from nbllama.train.run.earlier import explained, with_input
from nbllama.train.run.given import NOTHING, Given
from nbllama.train.run.loop import Loop
from nbllama.train.run.many import forecast_of, many_machines
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.result import Run
from nbllama.train.run.screen import Screen
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag
from nbllama.train.run.trunk import stored_trunk
from nbllama.train.run.write_lora import write_lora


def train(
    options: Options,
    threads: int,
    screen: Screen,
    stop: StopFlag,
    *,
    words: Sequence[str] = (),
    given: Given = NOTHING,
    started: float | None = None,
) -> Run:
    """Perform a complete run: load the inputs, print the forecast, train, and save.

    With `--dry-run`, only the forecast is printed; with `--only-write-lora`, only an adapter is
    written. `threads` is the number of threads in use (`nbllama.kernels.cores.use_threads`),
    `words` is the command line for the log, and `given` contains values in memory. `started` is the
    value of `time.perf_counter` when the program started (by default, now). If `stop` ends the run,
    its state is saved, and the result is marked as interrupted.

    Raises `UsageError`, `GGUFError`, `DataError`, `OutputError`, `NotEnoughMemory`,
    `CheckpointError`, `SaveFailed` and `Diverged`.
    """
    outputs, clock = Outputs(options), Clock(started)
    options = with_input(options, outputs, words, from_python=given.from_python)
    with ExitStack() as stack:
        if options.dry_run:
            ui = Recorder(screen)
        else:
            outputs.claim(stack)
            board = Board(options.tensorboard, stack) if options.tensorboard else None
            live = None if options.only_write_lora else watching(options, screen, stop)
            stack.enter_context(clock.watching_compilation())
            ui = stack.enter_context(Recorder(screen, outputs.log, board, live, clock=clock))
        if options.only_write_lora:
            run = write_lora(options, outputs, ui, given.model)
        else:
            with explained(options, outputs, words):
                session = RunSession(
                    options, words, threads, outputs=outputs, ui=ui, stop=stop, given=given
                )
            if session.continued is not None and not options.dry_run:
                session.continued.settle(ui.note)
            ui.attach(session)
            expected = forecast_of(session)
            if options.dry_run:
                adapter = Adapter.of(session.trainer.adapter, session.model.hp)
                run = Run(adapter, session.model, forecast=expected)
            else:
                with (
                    many_machines(session),
                    stored_trunk(
                        session.trunk, session.trainer, finished=lambda: session.finished,
                        say=ui.note,
                    ),
                ):  # fmt: skip
                    run = Loop(session).run(expected)
        run.notes = ui.notes
        return run
