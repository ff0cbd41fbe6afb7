"""The web page of a run, served during the run and updated by its `Recorder`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nbllama.errors import DataError
from nbllama.options.finetune.table import Options
from nbllama.report.live.server import LiveServer
from nbllama.report.live.state import LiveState
from nbllama.report.records import read_log
from nbllama.train.live.measures import Measures
from nbllama.train.live.questions import Questions
from nbllama.train.run.prompts import encode_prompts
from nbllama.train.run.screen import Screen, Silent
from nbllama.train.run.stop import StopFlag

if TYPE_CHECKING:
    from nbllama.train.run.session import RunSession

Row = dict[str, Any]


class Watching:
    """The `Recorder`'s interface to the page; all methods are called from the run's thread."""

    def __init__(self, stop: StopFlag, port: int) -> None:
        """Start the server. Raises `OSError` if the port is not available."""
        self._stop = stop
        self.state = LiveState(stop.from_page)
        self.server = LiveServer(self.state, port)
        self.measures: Measures | None = None
        self._questions: Questions | None = None

    def attach(self, session: RunSession, keep: Callable[[Row], None]) -> None:
        """Attach the loaded session; `keep` writes a row to the log and passes it to `row`."""
        trainer, model, log = session.trainer, session.model, session.outputs.log
        if session.state is not None and log:
            with suppress(DataError):  # a new log has no earlier iterations
                self.state.begin(read_log(log))
        n_iter = session.settings.n_iter
        self.measures = Measures(trainer, n_iter, keep, lambda row: self.state.add(row, keep=False))
        self._questions = Questions(
            self.state,
            model,
            trainer.adapter,
            encode=lambda text: encode_prompts(session.options, model, session.data, [text])[0],
            stopped=lambda: self._stop.signum != 0,
            keep=keep,
        )

    def row(self, row: Row) -> None:
        """Show a row of the log."""
        self.state.add(row)
        if row.get("event") == "run" and self.measures is not None:
            self.measures.before()

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self.state.note(text)

    def step_done(self, iteration: int) -> None:
        """Measure the step, answer questions, and prepare for the next iteration."""
        if self.measures is not None:
            self.measures.after()
        self.answer(iteration)
        if self.measures is not None:
            self.measures.before()

    def answer(self, iteration: int) -> None:
        """Answer the waiting questions."""
        if self._questions is not None:
            self._questions.answer(iteration)

    def close(self) -> None:
        """Stop the measurements and the server."""
        if self.measures is not None:
            self.measures.close()
        self.server.close()


def watching(options: Options, screen: Screen, stop: StopFlag) -> Watching | None:
    """Serve the `--live` page, and show its address once.

    Returns None if `--live` is not given or if the page cannot be served. In either case, the run
    continues without the page.
    """
    if options.live is None:
        return None
    try:
        made = Watching(stop, options.live)
        text = (
            f"live page of this run (open it in a browser on this machine): {made.server.address}"
        )
    except OSError as e:
        made = None
        text = f"--live {options.live}: {e.strerror or e}; training continues without the page"
    if getattr(type(screen), "note", None) is Silent.note:
        print(text, file=sys.stderr, flush=True)  # the only place where the address is shown
    else:
        screen.note(text)
    return made
