"""The program `python -m nbllama.finetune`.

It connects the command line and the screen to `nbllama.train.run.run.train`. The options are in
`nbllama.options.finetune.table`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nbllama.errors import Interrupted, NbllamaError
from nbllama.options.finetune.table import OPTIONS, PROG, Options, parse
from nbllama.options.words import replace_options
from nbllama.system.program import called_as, run_program
from nbllama.train.run.stop import StopFlag

if TYPE_CHECKING:
    from nbllama.train.run.result import Run


def _run(words: list[str]) -> None:
    if "--list-archs" in words or "--list_archs" in words:
        from nbllama.cli.archs import table

        print(table())
        return
    started = time.perf_counter()
    options, stop = parse(words), StopFlag()
    with stop.installed():
        run = _train(options, words, stop, started)
        if run.interrupted and run.reason != stop.reason:  # no workers are left
            raise NbllamaError(f"{run.reason}; {how_to_resume(options, words, run)}")
        if run.interrupted:
            raise Interrupted(how_to_resume(options, words, run), stop.signum)


def _train(options: Options, words: list[str], stop: StopFlag, started: float) -> Run:
    from nbllama.kernels.cores import use_threads

    threads = use_threads(options.threads)
    from nbllama.cli.ui import Display
    from nbllama.train.run.run import train

    with Display() as screen:
        return train(options, threads, screen, stop, words=words, started=started)


def how_to_resume(options: Options, words: Sequence[str], run: Run) -> str:
    """Return a message that says where the run stopped and which command resumes it."""
    seed = ("--seed", str(run.options["seed"]))
    # the checkpoint already contains the reshuffled order
    again = ("--force-reshuffle", "--force_reshuffle")
    words = [word for word in words if word not in again]
    text, program = f"stopped after iteration {run.iteration}", called_as(PROG)
    if not run.losses:
        # this run saved nothing, so the newest file may be from a different run
        words = replace_options(words, OPTIONS, [seed])
        return f"{text}; start again with: {program} {shlex.join(words)}"
    if "checkpoint" not in run.paths:
        return f"{text}; the run cannot be continued because --checkpoint-out is empty"
    left = [("--adam-iter", str(run.last - run.iteration)), ("--epochs", "0")]
    resume = [("--checkpoint-in", run.paths["checkpoint"]), *left, seed]
    words = [word for word in words if word != "--force"]  # the old files are already replaced
    words = replace_options(words, OPTIONS, resume)
    return f"{text}; continue with: {program} {shlex.join(words)}"


main = partial(run_program, _run)
