"""The interface of a screen: notes, a header, steps, evaluations, and a summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nbllama.report.log import EvaluationRecord, StepRecord

Pairs = Iterable[tuple[str, str]]


class Screen(Protocol):
    """The screen to which a run reports; the program uses `nbllama.cli.ui.Display`."""

    def note(self, text: str) -> None:
        """Show a message to the user."""

    def header(self, pairs: Pairs) -> None:
        """Show names and values before the first iteration."""

    def compiling(self, seconds: float | None = None) -> None:
        """Show that kernels are being compiled or, if `seconds` is given, that they are ready."""

    def step(self, record: StepRecord) -> None:
        """Show a finished iteration."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Show a finished evaluation."""

    def close(self, pairs: Pairs = ()) -> None:
        """Show that the run is over; `pairs` contains the names and values of the summary."""


class Silent:
    """A screen that shows nothing."""

    def note(self, text: str) -> None:
        """Ignore a message about the run."""

    def header(self, pairs: Pairs) -> None:
        """Ignore the settings."""

    def compiling(self, seconds: float | None = None) -> None:
        """Ignore the compilation of kernels."""

    def step(self, record: StepRecord) -> None:
        """Ignore an iteration."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Ignore an evaluation."""

    def close(self, pairs: Pairs = ()) -> None:
        """Ignore the summary."""
