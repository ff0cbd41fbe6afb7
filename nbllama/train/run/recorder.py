"""What a run reports goes to the screen, and to its log and its TensorBoard folder if it has them.

Nothing that goes wrong with these files stops training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nbllama.report.log import EvaluationRecord, MetricsLog, StepRecord
from nbllama.train.run.screen import Pairs, Screen


class Board(Protocol):
    """Another place that records go to (`nbllama.train.run.board`)."""

    def write(self, record: StepRecord | EvaluationRecord) -> None:
        """Write a record; an `OSError` ends the use of this place."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Recorder:
    """A `Screen` in front of another one. `notes`: every line for the user so far."""

    def __init__(self, screen: Screen, log: str = "", board: Board | None = None) -> None:
        """Open the metrics file `log` ("" for none). Raises `OutputError` if that fails."""
        self.notes: list[str] = []
        self._screen, self._board = screen, board
        self._log = MetricsLog(log, self.note) if log else None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_files()

    def note(self, text: str) -> None:
        """Keep a line about the run, and show it."""
        self.notes.append(text)
        self._screen.note(text)

    def header(self, pairs: Pairs) -> None:
        """Show what is going to be done."""
        self._screen.header(pairs)

    def compiling(self, seconds: float | None = None) -> None:
        """Show that kernels are compiled, or how long that took."""
        self._screen.compiling(seconds)

    def step(self, record: StepRecord) -> None:
        """Keep an iteration, write it to the log and the board, and show it."""
        self._keep(record)
        self._screen.step(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        """Keep an evaluation, write it to the log and the board, and show it."""
        self._keep(record)
        self._screen.evaluation(record)

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a line of another kind to the log; it has a key `event`."""
        if self._log is not None:
            self._log.write(row)

    def close(self, pairs: Pairs = ()) -> None:
        """End the run; `pairs`: names and values of its summary."""
        self._close_files()
        self._screen.close(pairs)

    def _keep(self, record: StepRecord | EvaluationRecord) -> None:
        if self._log is not None:
            self._log.write(record)
        if self._board is not None:
            try:
                self._board.write(record)
            except OSError as e:
                self._board = None
                self.note(f"--tensorboard: {e.strerror or e}; training continues without it")

    def _close_files(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._board is not None:
            board, self._board = self._board, None
            try:
                board.close()
            except OSError as e:
                self.note(f"--tensorboard: {e.strerror or e}")
