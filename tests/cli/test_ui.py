"""The display: plain lines in a pipe, live output on a terminal, and neither can fail."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbllama.cli.ui import Display, evaluation_line, fitted, plain_line
from nbllama.errors import OutputError
from nbllama.report.log import EvaluationRecord
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Screen
from tests.conftest import ROOT
from tests.report.test_log import RECORD


class Broken(io.StringIO):
    """A stream whose other side is closed after `left` writes."""

    def __init__(self, left: int, error: Exception) -> None:
        super().__init__()
        self.left, self.error = left, error

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


def run(display: Screen, n: int = 3) -> None:
    display.header([("model", "m.gguf"), ("a longer name", "x")])
    display.compiling()
    display.compiling(1.25)
    for i in range(1, n + 1):
        display.step(dataclasses.replace(RECORD, iter=i, n_iter=n, loss=4.0 / i, seconds=2.0))
    display.close([("adapter", "lora.gguf")])


def test_plain_lines() -> None:
    out = io.StringIO()
    run(Display(out))
    assert out.getvalue().splitlines() == [
        "model          m.gguf",
        "a longer name  x",
        "compiling kernels, once for this machine (up to a minute) ...",
        "compiled kernels in 1.2 s",
        *(
            f"iter=     {i} of=3 epoch=1 loss={4 / i:f} lr=1.000e-03 grad_norm=0.5 "
            f"tokens=1024 computed=600 tokens/s=200.0 dt=2.00s eta=0:00:0{2 * (3 - i)} mem=512MB"
            for i in (1, 2, 3)
        ),
        "adapter  lora.gguf",
    ]


def test_a_script_for_the_old_tool_finds_iter_and_loss() -> None:
    line = plain_line(RECORD, None)
    assert re.search(r"iter=\s*(\d+)", line)[1] == "12"  # type: ignore[index]
    assert re.search(r"loss=([0-9.]+)", line)[1] == "3.250000"  # type: ignore[index]
    assert "eta=?" in line
    assert "eta=1_day_0:00:00 " in plain_line(RECORD, 86400)


def test_a_skipped_step_says_so() -> None:
    record = dataclasses.replace(RECORD, loss=math.nan, skipped=True)
    assert plain_line(record, 1.0).endswith(" skipped: the loss or the gradient is not finite")
    assert "loss=nan" in plain_line(record, 1.0)


def test_lines_are_not_cut_wrapped_or_interpreted() -> None:
    out = io.StringIO()
    text = "[red]not markup[/red] :smile: " + "x" * 300
    Display(out).note(text)
    assert out.getvalue() == text + "\n"


@pytest.mark.parametrize("left", [0, 1, 4])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(28, "No space"), ValueError("closed file")]
)
def test_a_closed_output_does_not_stop_training(
    left: int, error: Exception, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    run(Recorder(Display(Broken(left, error)), str(log)))
    assert len(log.read_text().splitlines()) == 3


def test_no_output_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    run(Display())


def test_the_metrics_file(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with Recorder(Display(io.StringIO()), str(log)) as display:
        display.step(RECORD)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    wanted = dataclasses.asdict(RECORD)
    del wanted["measures"], wanted["workers"]
    assert rows == [wanted]
    with pytest.raises(OutputError):
        Recorder(Display(io.StringIO()), str(tmp_path))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_file_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbllama.report.log._opened", lambda path: io.FileIO(path, "ab"))
    out = io.StringIO()
    run(Recorder(Display(out), "/dev/full"))
    lines = out.getvalue().splitlines()
    assert sum("training continues" in line for line in lines) == 1
    assert sum(line.startswith("iter=") for line in lines) == 3


def test_closing_twice_and_after_an_error() -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Display(out) as display:
        display.step(RECORD)
        raise RuntimeError
    display.close()
    assert len(out.getvalue().splitlines()) == 1


pty = pytest.importorskip("pty", reason="a terminal needs a system with ptys")

_TERMINAL = """
import dataclasses, sys
from nbllama.system.program import prepare_streams
from nbllama.cli.ui import Display
from tests.report.test_log import RECORD
prepare_streams()
with Display() as display:
    display.header([("model", "m.gguf")])
    for i in range(1, 31):
        bad = i == 7
        loss = float("nan") if bad else 40.0 - i
        display.step(dataclasses.replace(RECORD, iter=i, n_iter=30, loss=loss, skipped=bad))
    display.close([("adapter", "lora.gguf")])
"""


def on_terminal(columns: int, term: str = "xterm-256color") -> str:
    """All bytes that the program of `_TERMINAL` writes to a terminal of that width."""
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": term, "COLUMNS": str(columns), "LINES": "24", "LC_ALL": "C"}
    child = subprocess.Popen(
        [sys.executable, "-c", _TERMINAL],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        env=env,
    )
    os.close(slave)
    got = b""
    while True:
        try:
            block = os.read(master, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        got += block
    os.close(master)
    assert child.wait(60) == 0, got
    return got.decode("utf-8")


def test_a_terminal_shows_all_numbers_and_a_falling_curve() -> None:
    got = on_terminal(100)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", got)
    last = plain.split("30/30")[-1]
    for part in ("epoch 1", "ETA 0:00:00", "loss 10.0000", "lr 1.00e-03", "200 tokens/s", "512 MB"):
        assert part in last, part
    curve = re.search(r"512 MB  ([▁-█]+)\r", last)
    assert curve
    assert sorted(curve[1], reverse=True) == list(curve[1])
    assert "iteration 7 skipped" in plain
    assert "adapter  lora.gguf" in last
    assert "\x1b[?25h" in got  # the cursor is shown again
    assert "iter=" not in plain


def test_a_narrow_terminal_keeps_one_line_each() -> None:
    got = on_terminal(40)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", got)
    lines = [line for line in re.split(r"[\r\n]+", plain) if "skipped" not in line]
    assert all(len(line) <= 40 for line in lines)
    assert any(line.startswith("30/30") for line in lines)
    assert any(line.startswith("loss 10.0000  lr 1.00e-03  200 token") for line in lines)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    got = on_terminal(200, term="dumb")
    assert "\x1b" not in got
    assert got.count("iter=") == 30 == got.count(" computed=600 ")


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_narrow_dumb_terminal_keeps_one_line_each(columns: int) -> None:
    lines = [line for line in on_terminal(columns, term="dumb").splitlines() if "iter=" in line]
    whole = [line for line in lines if "skipped" not in line]
    assert len(lines) == 30 and len(whole) == 29
    assert all(len(line) <= columns for line in whole)
    for part in ("iter=    30 of=30 ", "loss=10.000000", "eta=0:00:00"):
        assert part in lines[-1]
    assert ("tokens/s=" in lines[-1]) == (columns >= 60)
    assert ("mem=" in lines[-1]) == (columns >= 100)


def test_what_a_narrow_line_omits() -> None:
    whole = plain_line(RECORD, 9.0)
    assert fitted(whole, len(whole)) == whole
    assert fitted(whole, len(whole) - 1) == whole.replace(" computed=600", "")
    assert fitted(whole, 1) == "iter=    12 of=256 loss=3.250000 eta=0:00:09"
    evaluation = EvaluationRecord(20, 1.5, 4.5, 1.25, True, 2.0)
    assert fitted(evaluation_line(evaluation), 70) == (
        "validation iter=    20 val_loss=1.500000 perplexity=4.5 best"
    )
