"""The first thing that a program does: from then on, signals end it with one line and their code.

Nothing heavy is imported here: the handlers must be there before the imports of the program, which
take most of its first second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # without the last two on Windows


class Stopped(BaseException):
    """A signal ends the program.

    Not a `KeyboardInterrupt`: Python ends as if killed by SIGINT when one of these went through
    `exec`, which Numba uses, even if it was handled.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Unwinding:
    """A signal handler that raises `Stopped`, once in a second: cleaning up is not broken off.

    `over`: nothing is raised any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._last = -1.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise `Stopped`."""
        now = time.monotonic()
        if not self.over and (self._last < 0 or now - self._last > 1):
            self._last = now
            raise Stopped(signum)


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process at once: nothing was begun that would have to be cleaned up."""
    try:
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
    finally:
        os._exit(128 + signum)


def signals() -> Iterator[signal.Signals]:
    """Those that end a program; not one that is ignored, as `nohup` has SIGHUP."""
    for name in NAMES:
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            yield signum


@contextmanager
def unwinding() -> Iterator[Unwinding]:
    """Within the block a signal that nobody handles raises `Stopped`.

    Where `leave` handled it, it is ignored after the block: the program has ended.
    """
    free = (signal.SIG_DFL, signal.default_int_handler, leave)
    handler, before = Unwinding(), {}
    for signum in signals():
        if signal.getsignal(signum) in free:
            before[signum] = signal.signal(signum, handler)
    try:
        yield handler
    finally:
        handler.over = True
        for signum, old in before.items():
            signal.signal(signum, signal.SIG_IGN if old is leave else old)


class Program:
    """The function `main` of a module that is imported when it is called."""

    def __init__(self, module: str, **given: Any) -> None:
        self.module, self._given = module, given

    def __call__(self, *args: Any, **given: Any) -> int:
        """Call it; the exit code."""
        code: int = import_module(self.module).main(*args, **self._given, **given)
        return code

    def start(self) -> int:
        """Call it as the program of this process: signals end it from here on."""
        for signum in signals():
            signal.signal(signum, leave)
        return self()
