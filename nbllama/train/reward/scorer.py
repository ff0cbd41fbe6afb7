"""Score answers in a child process, with limits on time and memory.

A reward function is the user's own code and runs with the user's permissions. The limits guard
against bugs in this code, such as an endless loop, a huge allocation, an exception, or a value that
is not a number.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.errors import UsageError, shown
from nbllama.system.child import Child
from nbllama.train.reward import builtin

SECONDS = 10.0  # default limit per call
MEMORY = 2 << 30  # bytes by which the child may grow after loading
_LOADING_SECONDS = 120.0  # the function may import large packages
_MOST_LINE = 64 << 20  # maximum bytes per reply from the child
_HERE = os.path.dirname(os.path.abspath(__file__))
_CHILD, _BUILTIN = (os.path.join(_HERE, name) for name in ("_child.py", "builtin.py"))
_FUNCTIONS = {"exact": "exact", "json": "valid_json", "sql": "sql"}
_POLL = 0.2  # seconds between calls of `check` while the child is working

Check = Callable[[], None] | None


class Source(NamedTuple):
    """The file and name of a reward function, and the argument for creating it, if any.

    `text` contains the text of the file. `builtin` is the name of a built-in reward, or "" for
    a user's function. `identity` is the value that a checkpoint stores; it depends on the contents
    of the user's file, but not on the path of the file.
    """

    file: str
    text: str
    name: str
    argument: str | None
    builtin: str
    identity: str


class Failed(NamedTuple):
    """The reason why an answer has no reward."""

    reason: str


def find_reward(text: str) -> Source:
    """Find the reward that `--reward` names.

    Raises `UsageError` if `text` is not a valid value or the file cannot be read.
    """
    if text in builtin.NAMES:
        return Source(_BUILTIN, _own_text(), _FUNCTIONS[text], None, text, text)
    kind, colon, pattern = text.partition(":")
    if kind == builtin.PATTERN and colon:
        try:
            builtin.regex(pattern)
        except Exception as e:  # also RecursionError and OverflowError
            raise UsageError(f"--reward {shown(text)}: not a regular expression: {e}") from e
        return Source(_BUILTIN, _own_text(), builtin.PATTERN, pattern, builtin.PATTERN, text)
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UsageError(
            f"--reward {shown(text, 400)}: use FILE.py:FUNCTION, {', '.join(builtin.NAMES)} or "
            f"{builtin.PATTERN}:PATTERN"
        )
    try:
        with open(file, "rb") as f:
            content = f.read()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return Source(file, content.decode(), name, None, "", f"{name} {digest}")
    except OSError as e:
        raise UsageError(f"--reward {shown(text, 400)}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"--reward {shown(text, 400)}: the file is not UTF-8") from e


def _own_text() -> str:
    with open(_BUILTIN, encoding="utf-8") as f:
        return f.read()


class Scorer:
    """A reward function in a separate process, which is restarted after it exceeds a limit.

    `seconds` is the time limit per call, and `memory` is the memory limit in bytes (Linux only).
    """

    def __init__(self, source: Source, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        """Load the function. Raises `UsageError` if loading fails."""
        self.source, self._seconds, self._memory = source, seconds, memory
        self._lock = threading.Lock()
        self._child: Child | None = None
        with self._lock:
            found = self._start()
        if isinstance(found, Failed):
            where = source.builtin or f"{source.file}:{source.name}"
            raise UsageError(f"--reward {shown(where, 400)} cannot be used: {found.reason}")

    def score(
        self, prompt: Any, answer: str, record: dict[str, Any], check: Check = None
    ) -> float | Failed:
        """Return the reward for an answer to a prompt (text or messages), or why it has no reward.

        `check` is called while the child is working, and may raise.
        """
        request = {"op": "score", "prompt": prompt, "answer": answer, "record": record}
        found = self._call(request, check)
        return found if isinstance(found, Failed) else float(found)

    def problem(self, record: dict[str, Any]) -> str:
        """Return why a built-in reward cannot score answers for a record, or "" if it can.

        A user's function is not checked, and the result is "".
        """
        if not self.source.builtin:
            return ""
        request = {"op": "check", "name": self.source.builtin, "record": record}
        found = self._call(request, None)
        return found.reason if isinstance(found, Failed) else str(found)

    def close(self) -> None:
        """End the child process; may be called more than once."""
        if self._child is not None:
            self._child.close()
        self._child = None

    def _call(self, request: dict[str, Any], check: Check) -> Any:
        with self._lock:
            if self._child is None or not self._child.running:
                found = self._start()
                if isinstance(found, Failed):
                    return Failed(f"the process cannot start: {found.reason}")
            return self._ask(request, self._seconds, check)

    def _start(self) -> Any:
        """Start the child and load the function; return the child's reply or `Failed`."""
        self.close()
        longest = 2 * max(self._seconds, _LOADING_SECONDS)
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        command = [sys.executable, _CHILD, str(self._memory), str(longest)]
        try:
            self._child = Child(
                command, {**os.environ, "PYTHONPATH": path}, most=_MOST_LINE, group=True
            )
        except OSError as e:
            return Failed(e.strerror or str(e))
        source = self.source
        request = {
            "op": "load", "file": source.file, "text": source.text, "name": source.name,
            "argument": source.argument,
        }  # fmt: skip
        return self._ask(request, _LOADING_SECONDS, None)

    def _ask(self, request: dict[str, Any], seconds: float, check: Check) -> Any:
        """Send a request to the child; return the value in the child's reply, or `Failed`."""
        assert self._child is not None
        self._child.send(json.dumps(request, default=str))
        end = time.monotonic() + seconds
        while (line := self._child.receive(min(_POLL, end - time.monotonic()))) is None:
            if time.monotonic() >= end:
                self.close()
                return Failed(f"the time limit of {seconds:g} s was exceeded")
            if check is not None:
                try:
                    check()
                except BaseException:
                    self.close()  # a late reply must not be mistaken for the reply to a later call
                    raise
        if not line.endswith(b"\n"):
            self.close()
            return Failed("the process ended unexpectedly")
        answer = json.loads(line)
        return Failed(answer["error"]) if "error" in answer else answer["ok"]
