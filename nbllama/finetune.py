"""The program: `python -m nbllama.finetune`.

It reads a model, an adapter or checkpoint and data, forecasts, trains, and saves. Options:
`nbllama.cli.options`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from nbllama.cli.options import Options, parse
from nbllama.cli.run import run_program
from nbllama.cli.stop import StopFlag


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        options, stop = parse(words), StopFlag()
        with stop.installed(), ExitStack() as stack:
            _run(options, words, stop, stack)
        return 0

    return run_program(run, "--debug" in words)


def _prepare(options: Options) -> int:
    """Threads to use; environment for numba and numpy, which read it when they are imported."""
    from nbllama.cli.settings import physical_cores

    threads = options.threads or physical_cores()
    if "numba" not in sys.modules:
        os.environ["NUMBA_NUM_THREADS"] = str(max(threads, os.cpu_count() or 1))
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return threads


def _run(options: Options, words: list[str], stop: StopFlag, stack: ExitStack) -> None:
    threads = _prepare(options)
    from nbllama.cli.export import write_lora
    from nbllama.cli.loop import Loop
    from nbllama.cli.outputs import Outputs
    from nbllama.cli.session import Session
    from nbllama.cli.ui import Display

    outputs = Outputs(options)
    if not options.dry_run:
        outputs.claim(stack)
    ui = stack.enter_context(Display(log="" if options.dry_run else options.log))
    if options.only_write_lora:
        write_lora(options, outputs, ui)
        return
    session = Session(options, words, threads, outputs, ui, stop)
    told = session.forecast()
    if not options.dry_run:
        Loop(session).run(told)


if __name__ == "__main__":
    sys.exit(main())
