"""Records of iterations and evaluations, the log file, and an estimate of the remaining time."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from io import FileIO
from statistics import median
from typing import Any

from nbllama.errors import OutputError, shown
from nbllama.system.files import try_lock
from nbllama.system.regular import open_own

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class WorkerRow:
    """The work of one worker during one iteration of a run on several machines.

    `blocks` is the number of blocks that it computed, `tokens_per_s` its throughput while
    computing, and `share` the fraction of the iteration spent computing, 0 to 1.
    """

    worker: str
    blocks: int
    tokens_per_s: float
    share: float


@dataclass(frozen=True)
class StepRecord:
    """One iteration, for the display and the metrics file.

    `iter` starts at 1 and continues when a run is resumed; `n_iter` is the run's last iteration.
    `loss` is in nats per trained token. `seconds` is the time of the step, excluding compiling and
    saving. `tokens` is the number of input tokens in the step's samples, and `tokens_per_s` is
    based on it; `computed_tokens` excludes tokens that a sample shares with an earlier sample in
    its micro-batch. `skipped` means that the loss or the gradient was not finite, so no parameter
    was changed. `measures` contains additional metrics of the objective; each is written to the log
    under its own key. `workers` is set in runs on several machines; if it is empty, the log omits
    the key.
    """

    iter: int
    n_iter: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    computed_tokens: int
    tokens_per_s: float
    seconds: float
    rss_bytes: int
    skipped: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)
    workers: tuple[WorkerRow, ...] = ()


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation that was run after iteration `iter`.

    `val_loss` is in nats per trained token of the validation data, and `perplexity` is derived from
    it; both are None if there is no validation data. `best` says whether `val_loss` is the lowest
    so far; it is False if the best adapter could not be saved. `train_loss` is the mean since the
    last evaluation, or None if there was no step since then. `samples` contains prompts with their
    answers and any rewards. `measures` contains the same metrics as in `StepRecord`, computed on
    the validation data.
    """

    iter: int
    val_loss: float | None
    perplexity: float | None
    train_loss: float | None
    best: bool
    seconds: float
    samples: tuple[dict[str, str], ...] = ()
    event: str = "evaluation"
    measures: Mapping[str, float] = field(default_factory=dict)


class Eta:
    """The remaining time of the run, estimated from the median duration of recent steps.

    A single step that a save or another program slows down hardly changes the estimate.
    """

    def __init__(self, window: int = 11) -> None:
        self._recent: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        """Add the duration of a step."""
        self._recent.append(seconds)

    def seconds_left(self, steps: int) -> float | None:
        """Return the estimated seconds for `steps` more steps, or None before the first step."""
        return steps * median(self._recent) if self._recent else None


class LossCurve:
    """The losses of a run of any length, summarised as at most `2 * width` means."""

    def __init__(self, width: int = 24) -> None:
        self.width = width
        self._means: list[float] = []
        self._per_mean = 1
        self._sum, self._count = 0.0, 0

    def add(self, loss: float) -> None:
        """Add a loss, unless it is not finite."""
        if not math.isfinite(loss):
            return
        self._sum += loss
        self._count += 1
        if self._count < self._per_mean:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == 2 * self.width:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._per_mean *= 2

    def sparkline(self) -> str:
        """Draw the curve with block characters; the lowest mean becomes the lowest block."""
        if not self._means:
            return ""
        n = len(self._means)
        columns = min(n, self.width)
        cuts = [i * n // columns for i in range(columns + 1)]
        heights = [sum(self._means[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
        low, high = min(heights), max(heights)
        scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BARS[round((h - low) * scale)] for h in heights)


def loss_text(loss: float, places: int = 4) -> str:
    """Return a loss with `places` decimals, or with two significant digits if it is very small."""
    if not 0 < abs(loss) < 10.0 ** (1 - places):
        return f"{loss:.{places}f}"
    digits = 1 - math.floor(math.log10(abs(loss)))
    return f"{loss:.{digits}f}".rstrip("0")


def as_row(record: StepRecord | EvaluationRecord | Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record to a dict for JSON, with None for numbers that are not finite."""
    values: dict[str, Any] = dict(record) if isinstance(record, Mapping) else asdict(record)
    if not isinstance(record, Mapping):
        values |= values.pop("measures")
        if not values.get("workers", True):
            del values["workers"]
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


class MetricsLog:
    """A file with one JSON object per line, which is appended to and may be read during training.

    A disk error does not stop training: `on_error` is called once, and the log still tries to write
    later lines. If a full disk or a killed process left a truncated line, the next write first
    terminates this line.
    """

    def __init__(self, path: str, on_error: Callable[[str], None]) -> None:
        self.path = path
        self._on_error = on_error
        self._failed = False
        try:
            self._file = _opened(path)
            self._cut = _ends_inside_line(path)
        except OSError as e:
            raise OutputError(f"--log {shown(path)}: {e.strerror or e}") from e

    def write(self, record: StepRecord | EvaluationRecord | Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite, which JSON cannot represent, become null."""
        row = as_row(record)
        line = (
            (b"\n" if self._cut else b"")
            + json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
            + b"\n"
        )
        try:
            written = self._file.write(line)
            if written:
                self._cut = line[written - 1 : written] != b"\n"
            problem = "" if written == len(line) else "no space left for a complete line"
        except OSError as e:
            problem = e.strerror or str(e)
        if problem and not self._failed:
            self._failed = True
            path = shown(self.path)
            self._on_error(
                f"--log {path}: {problem}; training continues, but the log is incomplete"
            )

    def close(self) -> None:
        """Close the file; errors are reported in the same way as write errors."""
        try:
            self._file.close()
        except OSError as e:
            self._on_error(f"--log {shown(self.path)}: {e.strerror or e}")


def _opened(path: str) -> FileIO:
    """Open the file for appending, and lock it so that two runs cannot mix their lines."""
    fd = open_own(path, os.O_WRONLY | os.O_APPEND)
    file = FileIO(fd, "ab")
    if not try_lock(fd):
        file.close()
        raise OutputError(
            f"--log {shown(path)}: another run is writing to it; wait until that run ends, or "
            "choose a different name"
        )
    return file


def _ends_inside_line(path: str) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def duration(seconds: float) -> str:
    """Format a duration as `0:03:21` (hours first), or `2 days 3:00:00` for a day or more."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} day{'s' if days > 1 else ''} {clock}" if days else clock


def memory(n_bytes: int) -> str:
    """Format a size as `512 MB` (units of 10^6 bytes), or as `1.25 GB` if it is at least 10^9."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
