"""The screen of a run: a live display on a terminal, plain lines elsewhere.

Screen errors never stop training.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nbllama.report.log import (
    Eta,
    EvaluationRecord,
    LossCurve,
    StepRecord,
    duration,
    loss_text,
    memory,
)

# Words to omit on a narrow terminal without cursor movement, the least useful ones first.
DISPENSABLE = (
    "computed", "lr", "dt", "grad_norm", "mem", "tokens", "train_loss", "epoch", "tokens/s",
)  # fmt: skip
SHOWN = ("margin", "accuracy", "reward", "kl")  # measures of the objective to show on a terminal


class _Stream:
    """A text stream that discards all output once a write fails, for example to a closed pipe."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self._stream = None
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()


def columns_of(stream: _Stream) -> int:
    """Return the width of a terminal, or a very large number for anything else."""
    if not stream.isatty():
        return sys.maxsize
    given = os.environ.get("COLUMNS", "")
    try:
        columns = int(given) if given.isdecimal() else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or sys.maxsize  # some terminals report 0


def plain_line(record: StepRecord, seconds_left: float | None) -> str:
    """Return an iteration as `name=value` pairs, including the old tool's `iter=` and `loss=`."""
    eta = "?" if seconds_left is None else duration(seconds_left).replace(" ", "_")
    line = (
        f"iter={record.iter:6d} of={record.n_iter} epoch={record.epoch} loss={record.loss:f} "
        f"lr={record.lr:.3e} grad_norm={record.grad_norm:.4g} tokens={record.tokens} "
        f"computed={record.computed_tokens} tokens/s={record.tokens_per_s:.1f} "
        f"dt={record.seconds:.2f}s eta={eta} mem={memory(record.rss_bytes).replace(' ', '')}"
    )
    line += measured(record.measures)
    if record.workers:
        words = [f"{w.worker}:{w.tokens_per_s:.1f}:{100 * w.share:.0f}%" for w in record.workers]
        line += f" workers={','.join(words)}"
    return line + " skipped: the loss or the gradient is not finite" if record.skipped else line


def fitted(line: str, columns: int) -> str:
    """Return a line of `name=value` pairs without the least useful ones if it is too long."""
    for name in DISPENSABLE:
        if len(line) <= columns:
            break
        line = re.sub(rf" {re.escape(name)}=\S+", "", line)
    return line


def measured(numbers: Mapping[str, float]) -> str:
    """Return the measures of an objective as ` name=value` pairs."""
    return "".join(f" {name}={value:.4g}" for name, value in numbers.items())


def evaluation_line(record: EvaluationRecord) -> str:
    """Return an evaluation as `name=value` pairs."""
    loss = math.nan if record.val_loss is None else record.val_loss
    ppl = math.nan if record.perplexity is None else record.perplexity
    line = f"validation iter={record.iter:6d} val_loss={loss:f} perplexity={ppl:.4g}"
    if record.train_loss is not None:
        line += f" train_loss={record.train_loss:f}"
    line += measured(record.measures)
    return line + f" dt={record.seconds:.2f}s" + (" best" if record.best else "")


def one_line(text: str, most: int = 200) -> str:
    """Return the beginning of a text as one line, with visible escapes for line breaks."""
    flat = text.replace("\\", "\\\\").replace("\n", "\\n")
    return flat if len(flat) <= most else flat[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


class Display:
    """The display of a run on `stream`, by default standard output. See `nbllama.train.run.screen`.

    Call `header`, then `compiling` if kernels are compiled, `step` for each iteration, and finally
    `close`. `note` may be called at any time.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = _Stream(sys.stdout if stream is None else stream)
        self._console = Console(
            file=cast(TextIO, self._out), force_terminal=self._out.isatty(), highlight=False
        )
        self._columns = columns_of(self._out)
        self._terminal = self._out.isatty() and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._eta = Eta()
        self._curve = LossCurve()
        self._first: int | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Print a message to the user."""
        self._console.print(Text(text), soft_wrap=True)

    def header(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print the settings of the run as aligned `name  value` lines."""
        self._pairs(pairs)

    def compiling(self, seconds: float | None = None) -> None:
        """Print that kernels are being compiled, or how long compilation took."""
        if seconds is None:
            self.note("compiling kernels, once for this machine (up to a minute) ...")
        else:
            self.note(f"compiled kernels in {seconds:.1f} s")

    def step(self, record: StepRecord) -> None:
        """Show one iteration."""
        if self._first is None:
            self._first = record.iter
        self._eta.add(record.seconds)
        self._curve.add(record.loss)
        left = self._eta.seconds_left(record.n_iter - record.iter)
        if not self._terminal:
            self.note(fitted(plain_line(record, left), self._columns))
            return
        if record.skipped:
            self.note(f"iteration {record.iter} skipped: the loss or the gradient is not finite")
        if self._live is None:
            # No separate thread, because the kernels use all cores.
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(self._picture(record, left), refresh=True)

    def evaluation(self, record: EvaluationRecord) -> None:
        """Show an evaluation."""
        if record.val_loss is not None:
            self.note(fitted(evaluation_line(record), self._columns))
        for sample in record.samples:
            end = f"  (reward {sample['reward']})" if "reward" in sample else ""
            self.note(f"  {one_line(sample['prompt'])}  ->  {one_line(sample['answer'])}{end}")

    def close(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        """End the display; `pairs` contains the summary. May be called twice or after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._pairs(pairs)
        self._out.flush()

    def _pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        rows = list(pairs)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.note(f"{name:<{width}}  {value}")

    def _picture(self, record: StepRecord, seconds_left: float | None) -> Group:
        first = record.iter if self._first is None else self._first
        done, total = record.iter - first + 1, record.n_iter - first + 1
        bar = Table.grid(padding=(0, 1))
        eta = "?" if seconds_left is None else duration(seconds_left)
        bar.add_row(
            Text(f"{record.iter}/{record.n_iter}", style="bold"),
            ProgressBar(total=total, completed=done, width=32),
            Text(f"epoch {record.epoch}"),
            Text(f"ETA {eta}", style="cyan"),
        )
        shown = [(name, record.measures[name]) for name in SHOWN if name in record.measures]
        numbers = Text.assemble(
            ("loss ", "dim"),
            (loss_text(record.loss), "bold"),
            *(part for name, x in shown for part in ((f"  {name} ", "dim"), f"{x:.3g}")),
            ("  lr ", "dim"),
            f"{record.lr:.2e}  {record.tokens_per_s:.0f} tokens/s  {memory(record.rss_bytes)}  ",
            (self._curve.sparkline(), "green"),
        )
        numbers.truncate(max(20, self._console.width), overflow="ellipsis")
        if not record.workers:
            return Group(bar, numbers)
        words = [
            f"{w.worker} {w.tokens_per_s:.0f} tokens/s {100 * w.share:.0f} % busy"
            for w in record.workers
        ]
        workers = Text.assemble(("workers ", "dim"), ", ".join(words))
        workers.truncate(max(20, self._console.width), overflow="ellipsis")
        return Group(bar, numbers, workers)
