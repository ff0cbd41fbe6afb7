"""The time that a run takes, including the time before its first iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from numba.core.event import TimingListener, install_listener

from nbllama.report.log import duration

_WORTH_SHOWING = 1.0  # seconds of compilation


class Clock:
    """A clock that starts with the program or, in Python, with the call to `nbllama.tune`.

    `started` is the value of `time.perf_counter` at the start.
    """

    def __init__(self, started: float | None = None) -> None:
        self.started = time.perf_counter() if started is None else started
        self._first: float | None = None  # seconds before the first iteration
        self._compilation = TimingListener()

    @contextmanager
    def watching_compilation(self) -> Iterator[None]:
        """Measure the time that Numba spends compiling kernels, excluding loads from the cache."""
        with install_listener("numba:compile", self._compilation):
            yield

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def compilation(self) -> float:
        """Return the seconds that Numba spent compiling kernels."""
        return self._compilation.duration if self._compilation.done else 0.0

    def iteration_done(self, seconds: float) -> None:
        """Record the end of an iteration that took `seconds`; only the first call has an effect."""
        if self._first is None:
            self._first = max(0.0, self.seconds - seconds)

    def row(self) -> dict[str, float | None]:
        """Return the times for the log, in seconds; `before` is None if there was no iteration."""
        return {"seconds": self.seconds, "before": self._first, "compilation": self.compilation}

    def __str__(self) -> str:
        text = f"{duration(self.seconds)} in total"
        if self._first is not None:
            text += f", {duration(self._first)} of it before the first iteration"
        if self.compilation >= _WORTH_SHOWING:
            text += f"; compiling kernels took {duration(self.compilation)}"
        return text
