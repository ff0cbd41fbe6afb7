"""The flag that signals and the live page set to stop a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nbllama.errors import Interrupted
from nbllama.system.start import NAMES, Unwinding, repeated, signals


class StopFlag:
    """A flag, set by signals or the live page, that stops a run.

    As long as there is nothing to save (`at_once`), a signal ends the program immediately. Once
    training has begun, a signal only sets the flag, which is checked between layers.
    """

    def __init__(self, *names: str) -> None:
        """Use the signals in `names`, by default `NAMES`."""
        self._names = names or NAMES
        self.signum = 0
        self.at_once = True
        self._unwind = Unwinding()
        self.by_page = False

    def from_page(self) -> None:
        """Stop the run from the live page, as Ctrl-C would; safe to call from any thread."""
        if not self.signum:
            self.by_page, self.signum = True, signal.SIGINT

    @property
    def reason(self) -> str:
        """Return why the run ended; the reason is written to the log."""
        return "stopped from the live page" if self.by_page else f"stopped by signal {self.signum}"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals within the context; while `at_once` is set, they raise `Interrupted`."""
        before = {}
        for signum in signals():
            if signum.name in self._names:
                before[signum] = signal.signal(signum, self._set)
        try:
            with repeated():
                yield
        except BaseException:
            if self.signum and self.at_once:
                text = "stopped before the first iteration; nothing was saved"
                raise Interrupted(text, self.signum) from None
            raise
        finally:
            for signum, handler in before.items():
                if isinstance(handler, Unwinding):
                    handler.over = True  # the program is ending
                signal.signal(signum, handler)

    def _set(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        if self.at_once:
            self._unwind(signum, frame)

    def check(self) -> None:
        """Raise `StopRequested` if the flag is set."""
        from nbllama.train.trainer import StopRequested

        if self.signum:
            raise StopRequested
