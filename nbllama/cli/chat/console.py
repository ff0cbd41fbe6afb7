"""The terminal for a chat: streamed text, input lines, and Ctrl-C.

The model's text is written to standard output, and everything else to standard error. Input is
always UTF-8, regardless of the locale; `cli.run` sets the output encoding.
"""

from __future__ import annotations

import locale
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from nbllama.errors import shown
from nbllama.system.start import Stopped as Ended

_STYLES = {"": "\x1b[0m", "prompt": "\x1b[33m", "input": "\x1b[1m\x1b[32m"}
_PLAIN = "\n\t"


class Stopped(Exception):
    """Raised when the user presses Ctrl-C during an answer."""


class Console:
    """The terminal. If `color` is true, prompts and input are coloured differently from answers."""

    def __init__(self, color: bool) -> None:
        self._color = color
        self._style = ""
        self._clean = True  # whether the cursor is at the start of a line
        self._to_terminal = sys.stdout.isatty()
        self.typed = sys.stdin is not None and sys.stdin.isatty()
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="surrogateescape")
        if self.typed and _utf8_locale():
            with suppress(ImportError):
                import readline  # noqa: F401  # enables line editing

    def write(self, text: str, style: str = "") -> None:
        """Write part of an answer or a prompt immediately, without buffering.

        On a terminal, control characters are written as escapes.
        """
        if not text:
            return
        self._set(style)
        if self._to_terminal:
            text = "".join(c if c in _PLAIN or c.isprintable() else shown(c) for c in text)
        sys.stdout.write(text)
        sys.stdout.flush()
        self._clean = text.endswith("\n")

    def note(self, line: str) -> None:
        """Write a status line."""
        self.end_line()
        print(line, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """End the current line unless it is empty, and reset the colours."""
        self._set("")
        if not self._clean:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._clean = True

    def read(self, prompt: str = "") -> str | None:
        """Read a message of one or more lines; all lines but the last end with a backslash.

        Returns None at the end of the input. `prompt` is written only if the input is a terminal.
        """
        lines: list[str] = []
        while True:
            self._set("input")
            try:
                line = input(prompt if self.typed else "")
            except EOFError:
                return "\n".join(lines) if lines else None
            finally:
                self._set("")
            self._clean = True
            line = line.removeprefix("\ufeff").removesuffix("\r")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = ""

    def _set(self, style: str) -> None:
        if self._color and style != self._style:
            sys.stdout.write(_STYLES[style])
            sys.stdout.flush()
        self._style = style


def _utf8_locale() -> bool:
    """Return whether the current locale uses UTF-8.

    In any other locale, readline would interpret Chinese characters as commands.
    """
    name = getattr(locale, "CODESET", None)
    return name is not None and locale.nl_langinfo(name).upper() == "UTF-8"


class Interrupt:
    """A SIGINT handler that stops the current answer or, if there is no answer, the program."""

    def __init__(self) -> None:
        self._answering = False
        self._asked = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT inside the context."""
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def stops_answer(self) -> Iterator[None]:
        """After the first Ctrl-C, `check` raises `Stopped`; a second Ctrl-C ends the program."""
        self._answering = True
        try:
            yield
        finally:
            self._answering = self._asked = False

    def check(self) -> None:
        """Raise `Stopped` if Ctrl-C has been pressed."""
        if self._asked:
            raise Stopped

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._asked or not self._answering:
            raise Ended(signum)
        self._asked = True
