"""A program on a pseudo-terminal, as a user runs it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT


def _environment(**changed: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_NUM")}
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"PYTHONPATH": os.pathsep.join(path), "TERM": "dumb"} | changed


def _by_default() -> None:
    # A shell that started the tests in the background makes its children ignore SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`python -m nbllama.main` with a terminal for all three streams."""

    def __init__(self, args: Sequence[object], folder: Path, **env: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbllama.main", *map(str, args)],
            stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=_environment(**env),
            start_new_session=True, preexec_fn=_by_default,
        )  # fmt: skip
        os.close(slave)
        self.raw = b""

    @property
    def seen(self) -> str:
        """All that was written so far; a character whose bytes are not all there is an error."""
        return self.raw.decode("utf-8").replace("\r\n", "\n")

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Read until the new text since the last call matches; return that text."""
        start, end = len(self.raw), time.monotonic() + seconds
        while True:
            text = self.raw[start:].decode("utf-8", "ignore").replace("\r\n", "\n")
            if re.search(pattern, text):
                return text
            assert time.monotonic() < end, (pattern, self.raw[-300:])
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready:
                got = self._read()
                assert got, (pattern, self.raw[-300:])

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends the signal to the foreground process."""
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 60) -> int:
        """Read the rest; the exit code."""
        until = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if ready and not self._read():
                break
            assert time.monotonic() < until, self.raw[-300:]
        code = self.process.wait(seconds)
        os.close(self.master)
        return code

    def _read(self) -> bytes:
        try:
            got = os.read(self.master, 65536)
        except OSError:  # Linux: the other side is closed
            got = b""
        self.raw += got
        return got


def run_main(
    args: Sequence[object], said: str | bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """`python -m nbllama.main` with pipes; `said` is its input."""
    return subprocess.run(
        [sys.executable, "-m", "nbllama.main", *map(str, args)],
        input=said.encode() if isinstance(said, str) else said,
        capture_output=True,
        env=_environment(**env),
        preexec_fn=_by_default,
        timeout=300,
    )
