"""A child process that renders one untrusted chat template within time and memory limits.

A template is code from the model file. The child runs it in jinja2's immutable sandbox, which
prevents access to Python. This module also stops endless loops and limits the size of strings.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from nbllama.system.child import Child

MAX_SOURCE_BYTES = 256 * 1024
_MAX_ANSWER_BYTES = 256 << 20
_START_SECONDS = 60.0  # time to start Python and import jinja2 on a busy machine
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_template_child.py")
_ENV = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


# Messages, cuts, and variables for this chat only.
Chat = tuple[Sequence[dict[str, Any]], Sequence[tuple[int, bool]], dict[str, Any]]


class TemplateFailed(Exception):
    """Raised if a template fails; `kind` is an error kind from the child, or "time" or "died"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class TemplateSandbox:
    """A compiled template in a separate process, which is restarted if it exceeds a limit.

    Every method may raise TemplateFailed. Do not use the object after `close`.
    """

    def __init__(
        self, source: str, *, render_seconds: float, compile_seconds: float, memory_bytes: int
    ) -> None:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise TemplateFailed("size", f"{size} bytes, but the limit is {MAX_SOURCE_BYTES}")
        self._source = source
        self._render_seconds = render_seconds
        self._compile_seconds = compile_seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._child: Child | None = None
        with self._lock:
            self._start()

    def render(
        self, chats: Sequence[Chat], variables: dict[str, Any], now: datetime | None
    ) -> list[list[str] | TemplateFailed]:
        """Render `chats`; return the texts or the template error for each chat.

        Each chat is (messages, cuts, variables). For each cut (n, add_generation_prompt), the first
        n messages are rendered.

        Raises TemplateFailed if the whole request fails.
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
            if self._child is None or not self._child.running:
                self._start()
            results = self._ask(request, self._render_seconds, "rendering")
        return [
            TemplateFailed(result["error"], result["message"])
            if isinstance(result, dict)
            else result
            for result in results
        ]

    def close(self) -> None:
        """End the child; may be called more than once."""
        if self._child is not None:
            self._child.close()
        self._child = None

    def _start(self) -> None:
        self.close()
        env = {k: os.environ[k] for k in _ENV if k in os.environ}
        env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        longest = 2 * max(self._render_seconds, self._compile_seconds) + 10
        command = [sys.executable, _CHILD, str(self._memory_bytes), str(longest)]
        try:
            self._child = Child(command, env, most=_MAX_ANSWER_BYTES)
        except OSError as e:
            raise TemplateFailed("died", f"its process cannot be started: {e.strerror}") from None
        self._wait(_START_SECONDS, "starting")
        self._ask({"op": "compile", "source": self._source}, self._compile_seconds, "compiling")

    def _ask(self, request: dict[str, Any], seconds: float, doing: str) -> Any:
        assert self._child is not None
        self._child.send(json.dumps(request))
        return self._wait(seconds, doing)

    def _wait(self, seconds: float, doing: str) -> Any:
        assert self._child is not None
        line = self._child.receive(seconds)
        if line is None:
            self.close()
            raise TemplateFailed("time", f"{doing} took more than {seconds:g} s")
        if not line.endswith(b"\n"):
            self.close()
            raise TemplateFailed("died", f"its process ended while {doing}")
        answer = json.loads(line)
        if "error" in answer:
            if answer["error"] != "raised":
                self.close()  # the next request starts a new process
            raise TemplateFailed(answer["error"], answer["message"])
        return answer["ok"]
