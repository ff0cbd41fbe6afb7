"""The output of a run started from Python, depending on where it goes."""

from __future__ import annotations

import dataclasses
import io
import math
import sys

import pytest

from nbllama.cli.python_screen import Line, screen_for
from nbllama.cli.ui import Display
from nbllama.report.log import EvaluationRecord
from nbllama.train.run.screen import Silent
from tests.report.test_log import RECORD


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cell(io.StringIO):
    """Like ipykernel's replacement of standard output."""

    __module__ = "ipykernel.iostream"


def lines_seen(text: str) -> list[str]:
    """What stays of each line where "\\r" goes back to its start and later text covers earlier."""
    seen = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        seen.append("".join(cells).rstrip())
    return seen


def test_one_line_is_rewritten_and_notes_stay() -> None:
    out = Cell()
    line = Line(out)
    line.header([("model", "m.gguf")])
    for i in (1, 2):
        line.step(dataclasses.replace(RECORD, iter=i, n_iter=12, loss=4.0 / i, seconds=2.0))
    line.evaluation(EvaluationRecord(2, 1.5, math.exp(1.5), None, True, 0.25))
    bad = dataclasses.replace(RECORD, iter=3, n_iter=12, loss=math.nan, skipped=True)
    line.step(bad)
    line.step(dataclasses.replace(RECORD, iter=12, n_iter=12, loss=0.5, seconds=2.0))
    line.close([("loss", "4 at first")])
    line.close()
    assert lines_seen(out.getvalue()) == [
        "model  m.gguf",
        "validation iter=     2 val_loss=1.500000 perplexity=4.482 dt=0.25s best",
        "iteration 3 skipped: the loss or the gradient is not finite",
        "iteration 12/12  loss 0.5000  200 tokens/s  0:00:00 left",
        "loss  4 at first",
        "",
    ]
    assert "iteration 2/12  loss 2.0000  200 tokens/s  0:00:20 left" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("out", "err", "quiet", "kind"),
    [
        (io.StringIO, io.StringIO, None, Silent),
        (io.StringIO, io.StringIO, False, Display),
        (io.StringIO, Terminal, None, Display),
        (Terminal, io.StringIO, None, Silent),  # only standard error counts
        (Cell, Cell, None, Line),
        (Cell, Cell, True, Silent),
        (Terminal, Terminal, True, Silent),
    ],
)
def test_which_screen(
    monkeypatch: pytest.MonkeyPatch,
    out: type[io.StringIO],
    err: type[io.StringIO],
    quiet: bool | None,
    kind: type,
) -> None:
    monkeypatch.setattr(sys, "stdout", out())
    monkeypatch.setattr(sys, "stderr", err())
    assert type(screen_for(quiet)) is kind
