"""The screen for a run that is started from Python."""

from __future__ import annotations

import sys
from typing import TextIO

from nbllama.arguments import instance
from nbllama.cli.ui import Display
from nbllama.report.log import Eta, StepRecord, duration, loss_text
from nbllama.train.run.screen import Pairs, Screen, Silent


def screen_for(quiet: bool | None) -> Screen:
    """Return the screen to use for a call from Python.

    If `quiet` is True, the screen shows nothing. Otherwise, in a notebook, it shows a single line
    that is rewritten continually, and on a terminal, it shows the same display as the program.
    Elsewhere, it prints the program's plain lines if `quiet` is False, and nothing if `quiet` is
    None.
    """
    instance("quiet", quiet, (bool, type(None)), "use True, False or None")
    if quiet:
        return Silent()
    if in_notebook(sys.stdout):
        return Line(sys.stdout)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return Display(sys.stderr) if terminal or quiet is False else Silent()


def in_notebook(stream: object) -> bool:
    """Return whether output to `stream` appears in a notebook cell (Jupyter, VS Code, Colab)."""
    return type(stream).__module__.partition(".")[0] == "ipykernel"


class Line(Display):
    """A single line of text per run, rewritten at each iteration; notes appear above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._left = Eta()
        self._width = 0  # width of the current line

    def step(self, record: StepRecord) -> None:
        """Rewrite the line."""
        self._left.add(record.seconds)
        left = self._left.seconds_left(record.n_iter - record.iter)
        text = (
            f"iteration {record.iter}/{record.n_iter}  loss {loss_text(record.loss)}  "
            f"{record.tokens_per_s:.0f} tokens/s  {duration(left or 0.0)} left"
        )
        if record.skipped:
            self.note(f"iteration {record.iter} skipped: the loss or the gradient is not finite")
        self._out.write("\r" + text.ljust(self._width))
        self._out.flush()
        self._width = len(text)

    def note(self, text: str) -> None:
        """Print a note in place of the current line, which reappears at the next iteration."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0
        super().note(text)

    def close(self, pairs: Pairs = ()) -> None:
        """End the line and print the summary."""
        if self._width:
            self._out.write("\n")
            self._width = 0
        super().close(pairs)
