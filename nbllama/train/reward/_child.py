"""The child process that runs a reward function; `scorer` starts it and sends requests.

The protocol is one UTF-8 JSON object per line, with requests on stdin and replies on stdout:

    {"op": "load", "file": str, "text": str, "name": str, "argument": str|null}  -> {"ok": true}
    {"op": "check", "name": str, "record": {...}}                       -> {"ok": str}
    {"op": "score", "prompt": ..., "answer": str, "record": {...}}      -> {"ok": number}
    any failure                                                        -> {"error": str}

The child receives the contents of the file instead of reading the file, so that editing the file
during a run cannot change the reward function. If `argument` is not null, the function `name` is
called with this argument and returns the reward function. `check` calls the function `problem` in
the same file. Anything that the function prints is discarded. This module imports nothing from
nbllama, so that the child starts quickly and has none of the program's data in memory.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, BinaryIO

WHILE_LOADING = 8 << 30  # bytes by which the child may grow while importing the function
MOST = 300  # characters per message


class Given(importlib.abc.SourceLoader):
    """A loader that creates a module from source text and a file name."""

    def __init__(self, path: str, text: str) -> None:
        self._path, self._text = path, text

    def get_filename(self, fullname: str) -> str:
        """Return the name of the file."""
        return self._path

    def get_data(self, path: str) -> bytes:
        """Return the source text."""
        return self._text.encode()


def load(request: dict[str, Any]) -> tuple[Callable[..., Any], ModuleType]:
    """Return the reward function named in a request, and its module."""
    path = os.path.abspath(request["file"])
    sys.path.insert(0, os.path.dirname(path))
    loader = Given(path, request["text"])
    spec = importlib.util.spec_from_loader("reward_of_the_run", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    loader.exec_module(module)
    found = getattr(module, request["name"], None)
    if found is None:
        raise AttributeError(f"the file has no function {request['name']}")
    if not callable(found):
        raise TypeError(f"{request['name']} is not a function")
    made: Callable[..., Any] = found
    if request["argument"] is not None:
        made = found(request["argument"])
    return made, module


def number(value: object) -> float:
    """Convert a reward to a number. Raises `ValueError` unless it is a finite number."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise ValueError(f"the function returned {kind_of(value)}, not a number")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"the function returned {found}")
    return found


def kind_of(value: object) -> str:
    """Describe a value that a reward function returned instead of a number."""
    if value is None:
        return "None"
    return "text" if isinstance(value, str) else f"a {type(value).__name__}"


def message(error: BaseException) -> str:
    """Describe an exception in one line."""
    if isinstance(error, MemoryError):
        return "the memory limit was exceeded"
    if isinstance(error, ValueError) and str(error).startswith("the function returned"):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MOST] if text else type(error).__name__


def limit_memory(extra: int) -> None:
    """Allow this process to grow by at most `extra` bytes.

    The limit is relative to the current size of the process, which is read from /proc. On systems
    without /proc, memory is not limited.
    """
    try:
        import resource
    except ImportError:
        return
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as f:
            base = int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = base + extra
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def set_alarm(seconds: float) -> None:
    """End this process after `seconds`; 0 means never.

    The parent kills a child that takes too long. The alarm ends a child whose parent no longer
    exists.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the streams from and to the parent; redirect all other output to the null device."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    return requests, answers


def main(memory: int, seconds: float) -> None:
    """Answer requests until stdin ends.

    `memory` is passed to `limit_memory` after loading, and `seconds` to `set_alarm` before each
    request.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C
    requests, answers = streams()
    score: Callable[..., Any] | None = None
    module = None
    limit_memory(WHILE_LOADING)
    for line in requests:
        set_alarm(seconds)
        try:
            request = json.loads(line)
            if request["op"] == "load":
                score, module = load(request)
                limit_memory(memory)
                data = b'{"ok": true}'
            elif request["op"] == "check":
                assert module is not None
                found = module.problem(request["name"], request["record"])
                data = json.dumps({"ok": found}).encode()
            else:
                assert score is not None
                found = number(score(request["prompt"], request["answer"], request["record"]))
                data = json.dumps({"ok": found}).encode()
        except BaseException as e:  # even SystemExit: the function must not end the process
            data = json.dumps({"error": message(e)}).encode()
        set_alarm(0)
        answers.write(data + b"\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
