"""What a run shows while it goes: notes, a header, steps, evaluations, and a summary at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nbllama.report.log import EvaluationRecord, StepRecord

Pairs = Iterable[tuple[str, str]]


class Screen(Protocol):
    """Where a run reports. `nbllama.cli.ui.Display` is the one of the program."""

    def note(self, text: str) -> None:
        """One line for the user."""

    def header(self, pairs: Pairs) -> None:
        """Names and values, before the first iteration."""

    def compiling(self, seconds: float | None = None) -> None:
        """Kernels are being compiled; with `seconds`, they are ready."""

    def step(self, record: StepRecord) -> None:
        """Show that an iteration is done."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Show that an evaluation is done."""

    def close(self, pairs: Pairs = ()) -> None:
        """Show that the run is over; `pairs`: names and values of its summary."""


class Silent:
    """A screen that shows nothing."""

    def note(self, text: str) -> None:
        """Drop a line about the run."""

    def header(self, pairs: Pairs) -> None:
        """Drop what is going to be done."""

    def compiling(self, seconds: float | None = None) -> None:
        """Drop news of the compiler."""

    def step(self, record: StepRecord) -> None:
        """Drop an iteration."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Drop an evaluation."""

    def close(self, pairs: Pairs = ()) -> None:
        """Drop the summary."""
