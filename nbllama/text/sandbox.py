"""A child process that renders one untrusted chat template within time and memory limits.

A template is code from the model file. The child runs it in jinja2's immutable sandbox, which
prevents access to Python; this module also stops endless loops and large strings.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import IO, Any

MAX_SOURCE_BYTES = 256 * 1024
_MAX_ANSWER_BYTES = 256 << 20
_START_SECONDS = 60.0  # an interpreter and jinja2, on a machine that can be busy
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_template_child.py")
_ENV = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


# Messages, cuts, and variables of this chat only.
Chat = tuple[Sequence[dict[str, Any]], Sequence[tuple[int, bool]], dict[str, Any]]


class TemplateFailed(Exception):
    """A template failed; `kind` is one of the child's kinds, or "time" or "died"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TemplateSandbox:
    """A compiled template in its own process, which is restarted after it exceeded a limit.

    Every method raises TemplateFailed. Not safe for use after `close`.
    """

    def __init__(
        self, source: str, *, render_seconds: float, compile_seconds: float, memory_bytes: int
    ) -> None:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise TemplateFailed("size", f"{size} bytes, limit {MAX_SOURCE_BYTES}")
        self._source = source
        self._render_seconds = render_seconds
        self._compile_seconds = compile_seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._end: weakref.finalize[..., Any] = weakref.finalize(self, _kill, None)
        with self._lock:
            self._start()

    def render(
        self, chats: Sequence[Chat], variables: dict[str, Any], now: datetime | None
    ) -> list[list[str] | TemplateFailed]:
        """Render `chats`: return the texts of each, or the error of the template on it.

        The texts are, for each (messages, cuts, variables) of `chats` and each
        (n, add_generation_prompt) of its cuts, those of the first n messages.

        Raises TemplateFailed if the whole request failed.
        """
        request = {
            "op": "render",
            "chats": [
                {"messages": messages, "cuts": cuts, "variables": more}
                for messages, cuts, more in chats
            ],
            "variables": variables,
            "now": now.isoformat() if now else None,
        }
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            results = self._ask(request, self._render_seconds, "rendering")
        return [
            TemplateFailed(result["error"], result["message"])
            if isinstance(result, dict)
            else result
            for result in results
        ]

    def close(self) -> None:
        """End the child; it can be called twice."""
        self._end()
        self._process = None

    def _start(self) -> None:
        self._end()
        env = {k: os.environ[k] for k in _ENV if k in os.environ}
        env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        longest = 2 * max(self._render_seconds, self._compile_seconds) + 10
        try:
            process = subprocess.Popen(
                [sys.executable, _CHILD, str(self._memory_bytes), str(longest)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
            )
        except OSError as e:
            raise TemplateFailed("died", f"its process cannot be started: {e.strerror}") from None
        self._process = process
        self._end = weakref.finalize(self, _kill, process)
        self._answers = queue.Queue()
        threading.Thread(
            target=_read_lines, args=(process.stdout, self._answers), daemon=True
        ).start()
        self._wait(_START_SECONDS, "starting")
        self._ask({"op": "compile", "source": self._source}, self._compile_seconds, "compiling")

    def _ask(self, request: dict[str, Any], seconds: float, doing: str) -> Any:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # the missing answer is reported below
        return self._wait(seconds, doing)

    def _wait(self, seconds: float, doing: str) -> Any:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise TemplateFailed("time", f"{doing} took more than {seconds:g} s") from None
        if not line.endswith(b"\n"):
            self.close()
            raise TemplateFailed("died", f"its process ended while {doing}")
        answer = json.loads(line)
        if "error" in answer:
            if answer["error"] != "raised":
                self.close()  # the next request starts a new process
            raise TemplateFailed(answer["error"], answer["message"])
        return answer["ok"]


def _read_lines(stream: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Put every line of `stream` into the queue, and an empty one at its end."""
    with stream:
        while True:
            line = stream.readline(_MAX_ANSWER_BYTES)
            lines.put(line)
            if not line.endswith(b"\n"):
                return


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.kill()
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):  # buffered output has no reader any more
            process.stdin.close()
