"""Signal handlers, installed first, that end a program with a one-line message and an exit code.

This module imports nothing slow, because the handlers must be installed before the program's other
imports, which take most of the first second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # the last two do not exist on Windows


AGAIN = 0.01  # seconds after which an ignored signal is sent again


class Stopped(BaseException):
    """Raised by a signal that ends the program.

    The class is not derived from `KeyboardInterrupt`: if a `KeyboardInterrupt` passes through
    `exec`, which Numba uses, Python exits as if killed by SIGINT, even if the exception is handled.
    """

    def __init__(self, signum: int, handler: Unwinding | None = None) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.handler = signum, handler


class Unwinding:
    """A signal handler that raises `Stopped`, at most once per second, so that cleanup can finish.

    When `over` is set, the handler no longer raises. `last` is the time of the last exception, in
    seconds. If it is -1, the next signal always raises an exception.
    """

    def __init__(self) -> None:
        self.over = False
        self.last = -1.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise `Stopped`."""
        now = time.monotonic()
        if not self.over and (self.last < 0 or now - self.last > 1):
            self.last = now
            raise Stopped(signum, self)


def _send_again(stopped: Stopped) -> None:
    """Send a signal again after `AGAIN` seconds and make its handler raise `Stopped` again."""
    from threading import Timer  # takes milliseconds, and is hardly ever needed

    if stopped.handler is not None:
        stopped.handler.last = -1.0
    timer = Timer(AGAIN, signal.raise_signal, [stopped.signum])
    timer.daemon = True
    timer.start()


@contextmanager
def repeated() -> Iterator[None]:
    """Send a signal again if Python ignores the `Stopped` exception raised for it.

    Python ignores exceptions in finalizers and callbacks; it prints them and continues.
    """
    before = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, Stopped):
            _send_again(ignored.exc_value)
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process immediately; at this point, there is nothing to clean up."""
    try:
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
    finally:
        os._exit(128 + signum)


def signals() -> Iterator[signal.Signals]:
    """Yield the signals that end a program, except those that are ignored (as under `nohup`)."""
    for name in NAMES:
        signum = getattr(signal, name, None)
        if signum is not None and signal.getsignal(signum) is not signal.SIG_IGN:
            yield signum


@contextmanager
def unwinding() -> Iterator[Unwinding]:
    """Inside the block, make signals that have no other handler raise `Stopped`.

    After the block, signals previously handled by `leave` are ignored, because the program has
    ended.
    """
    free = (signal.SIG_DFL, signal.default_int_handler, leave)
    handler, before = Unwinding(), {}
    for signum in signals():
        if signal.getsignal(signum) in free:
            before[signum] = signal.signal(signum, handler)
    try:
        with repeated():
            yield handler
    finally:
        handler.over = True
        for signum, old in before.items():
            signal.signal(signum, signal.SIG_IGN if old is leave else old)


class Program:
    """The function `main` of a module; calling it imports the module.

    `started` says whether a program runs as the main program of this process, and may thus end the
    process.
    """

    started = False

    def __init__(self, module: str, **given: Any) -> None:
        self.module, self._given = module, given

    def __call__(self, *args: Any, **given: Any) -> int:
        """Call `main`; return the exit code."""
        code: int = import_module(self.module).main(*args, **self._given, **given)
        return code

    def start(self) -> int:
        """Install the signal handlers, and call `main` as the main program of this process."""
        for signum in signals():
            signal.signal(signum, leave)
        Program.started = True
        return self()
