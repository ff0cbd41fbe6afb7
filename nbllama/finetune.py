"""The program: `python -m nbllama.finetune`.

It reads a model, an adapter or checkpoint and data, forecasts, trains, and saves. Options:
`nbllama.cli.options`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType

from nbllama.cli.options import Options, parse
from nbllama.cli.run import run_program


class StopFlag:
    """Set by SIGINT or SIGTERM; looked at between layers."""

    def __init__(self) -> None:
        self.signum = 0

    def install(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._set)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum

    def check(self) -> None:
        from nbllama.train import StopRequested

        if self.signum:
            raise StopRequested


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_program(lambda: _run(parse(words), words), "--debug" in words)


def _prepare(options: Options) -> int:
    """Threads to use; environment for numba and numpy, which must not be imported before."""
    from nbllama.cli.settings import physical_cores

    cores = physical_cores()
    threads = options.threads or cores
    os.environ.setdefault("NUMBA_NUM_THREADS", str(max(threads, os.cpu_count() or 1)))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return threads


def _run(options: Options, words: list[str]) -> int:
    threads = _prepare(options)
    stop = StopFlag()
    stop.install()
    from nbllama.cli.session import Session
    from nbllama.cli.ui import Display

    with ExitStack() as stack:
        _claim(options, stack)
        ui = stack.enter_context(Display(log=options.log))
        session = Session(options, words, threads, ui, stop)
        told = session.forecast()
        if not options.dry_run:
            session.train(told)
    return 0


def _claim(options: Options, stack: ExitStack) -> None:
    """Prove that the outputs can be written and lock them, before anything slow."""
    from nbllama.checkpoint import LATEST, output_name
    from nbllama.files import RunLock, check_writable, sweep_temporary

    for pattern in (options.checkpoint_out, options.lora_out):
        if pattern and not options.dry_run:
            latest = output_name(pattern, LATEST)
            check_writable(latest)
            stack.enter_context(RunLock(latest))
            sweep_temporary(latest)


if __name__ == "__main__":
    sys.exit(main())
