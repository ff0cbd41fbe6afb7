"""Report a run on the screen, and in its log and its TensorBoard folder if these are enabled.

File errors never stop training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nbllama.errors import shown
from nbllama.report.log import EvaluationRecord, MetricsLog, StepRecord, as_row
from nbllama.train.run.clock import Clock
from nbllama.train.run.screen import Pairs, Screen


class Board(Protocol):
    """A destination for records besides the log (`nbllama.train.run.board`)."""

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Write a record; after an `OSError`, the destination is no longer used."""
        ...

    def close(self) -> None:
        """Write the remaining records, and close the destination."""
        ...


class Live(Protocol):
    """The live page for a run (`nbllama.train.live.watching`)."""

    def attach(self, session: Any, keep: Callable[[dict[str, Any]], None]) -> None:
        """Attach a loaded `RunSession`; `keep` adds a row to the log."""

    def row(self, row: dict[str, Any]) -> None:
        """Show a row of the log."""

    def note(self, text: str) -> None:
        """Show a message to the user."""

    def step_done(self, iteration: int) -> None:
        """Take measurements after an iteration, and answer the pending questions."""

    def answer(self, iteration: int) -> None:
        """Answer the pending questions."""

    def close(self) -> None:
        """Stop serving the page."""


class Recorder:
    """A `Screen` that records a run and forwards everything to another `Screen`.

    `notes` lists all messages.
    """

    def __init__(
        self,
        screen: Screen,
        log: str = "",
        board: Board | None = None,
        live: Live | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        """Open the metrics file `log` ("" for none). Raises `OutputError` if this fails."""
        self.notes: list[str] = []
        self.clock = Clock() if clock is None else clock
        self._screen, self._board, self._live = screen, board, live
        self._log = MetricsLog(log, self.note) if log else None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_files()

    def note(self, text: str) -> None:
        """Record a message about the run, and show it."""
        self.notes.append(text)
        self._screen.note(text)
        self._to_page(lambda live: live.note(text))

    def attach(self, session: Any) -> None:
        """Pass the session, a `nbllama.train.run.session.RunSession`, to the page."""
        self._to_page(lambda live: live.attach(session, self.record))

    def header(self, pairs: Pairs) -> None:
        """Show the settings of the run."""
        self._screen.header(pairs)

    def compiling(self, seconds: float | None = None) -> None:
        """Show that kernels are being compiled, or how long compilation took."""
        self._screen.compiling(seconds)

    def step(self, record: StepRecord) -> None:
        """Record an iteration: write it to the log and the board, and show it."""
        self.clock.iteration_done(record.seconds)
        self._keep(record)
        self._screen.step(record)
        self._to_page(lambda live: live.step_done(record.iter))

    def evaluation(self, record: EvaluationRecord) -> None:
        """Record an evaluation: write it to the log and the board, and show it."""
        self._keep(record)
        self._screen.evaluation(record)
        self._to_page(lambda live: live.answer(record.iter))

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row of any other kind, identified by its `event` key, to the log."""
        if self._log is not None:
            self._log.write(row)
        self._to_page(lambda live: live.row(as_row(row)))

    def close(self, pairs: Pairs = ()) -> None:
        """Close the page, the log and the board, and show the summary in `pairs`."""
        self._close_files()
        self._screen.close(pairs)

    def _keep(self, record: StepRecord | EvaluationRecord) -> None:
        if self._log is not None:
            self._log.write(record)
        self._to_page(lambda live: live.row(as_row(record)))
        if self._board is not None:
            try:
                self._board.write(record)
            except Exception as e:  # from a third-party package
                self._board = None
                self.note(f"--tensorboard: {_reason(e)}; training continues without it")

    def _to_page(self, work: Callable[[Live], None]) -> None:
        """Run an action on the page; an error does not stop the run."""
        if self._live is None:
            return
        try:
            work(self._live)
        except Exception as e:
            live, self._live = self._live, None
            live.close()
            self.note(f"--live: {type(e).__name__}: {e}; training continues without the page")

    def _close_files(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._board is not None:
            board, self._board = self._board, None
            try:
                board.close()
            except Exception as e:
                self.note(f"--tensorboard: {_reason(e)}")


def _reason(e: Exception) -> str:
    known = e.strerror if isinstance(e, OSError) else None
    return shown(known or str(e) or type(e).__name__, 400)
