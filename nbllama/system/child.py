"""A child process that answers each line of input with one line of output."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO


class Child:
    """A child process that is killed when this object is deleted, unless it has already ended.

    Its standard error is discarded. `most` is the maximum length of a line in bytes. With `group`,
    the child runs in its own process group, and its own children are killed with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        most: int,
        group: bool = False,
    ) -> None:
        """Start the process. Raises `OSError`."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            start_new_session=group,
        )
        self._end = weakref.finalize(self, _kill, self._process, group)
        self._lines: queue.Queue[bytes] = queue.Queue()
        reader = threading.Thread(
            target=_read_lines, args=(self._process.stdout, self._lines, most), daemon=True
        )
        reader.start()

    @property
    def running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def send(self, line: str) -> None:
        """Send a line; if the child has ended, `receive` will detect it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> bytes | None:
        """Return the next line, or None if none arrives within `seconds`.

        The line ends with a line feed unless the process has ended or the line is too long.
        """
        try:
            return self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Kill the process; further calls have no effect."""
        self._end()


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes], most: int) -> None:
    """Put the lines of `stream` into the queue; stop after the first one without a line feed.

    That line is the rest of the stream, which may be empty, or the start of a line that is longer
    than `most` bytes.
    """
    with stream:
        while True:
            line = stream.readline(most)
            lines.put(line)
            if not line.endswith(b"\n"):
                return


def _kill(process: subprocess.Popen[bytes], group: bool) -> None:
    if group and hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):  # nothing reads the buffered output any more
            process.stdin.close()
