"""The child process that renders chat templates; `sandbox` starts it and sends requests.

The protocol is one UTF-8 JSON object per line, with requests on stdin and replies on stdout:

    {"op": "compile", "source": str}                          -> {"ok": true}
    {"op": "render",
     "chats": [{"messages": [...], "cuts": [[n, add_generation_prompt]...],
                "variables": {...}}...],
     "variables": {...}, "now": str|null}                     -> {"ok": [texts or error...]}
    any failure                                               -> {"error": kind, "message": str}

For each cut, the first n messages are rendered, and `texts` contains one string per cut. If the
template rejects a chat or fails on it, the reply for that chat contains an error instead of texts.
`tools` is one of a chat's variables; as in llama.cpp's server, it is undefined if the chat has no
tools. The kinds of errors are syntax, security, raised, memory, recursion, size and failed. This
module imports nothing from nbllama, so that the child starts quickly and contains none of the
program's data.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

# Files in this folder must not shadow modules that jinja2 imports.
sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]

import jinja2  # noqa: E402
from jinja2 import nodes  # noqa: E402
from jinja2.exceptions import SecurityError  # noqa: E402
from jinja2.ext import Extension  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

MAX_TEXT = 16 << 20  # characters per rendered text


class Raised(jinja2.TemplateError):
    """Raised if the template calls `raise_exception`."""


class TooLong(Exception):
    """Raised if a rendered text is longer than `MAX_TEXT`."""


class Generation(Extension):
    """The tag `{% generation %}...{% endgeneration %}`, which marks an answer and is ignored."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        inside: list[nodes.Node] = parser.parse_statements(
            ("name:endgeneration",), drop_needle=True
        )
        return inside


def _raise_exception(message: object = "") -> None:
    raise Raised(str(message))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _no_other(name: str) -> str:
    raise SecurityError(f"loads another template, {name!r}")


def environment() -> ImmutableSandboxedEnvironment:
    """Return the jinja2 environment that templates expect, as defined by Hugging Face."""
    env = ImmutableSandboxedEnvironment(
        loader=jinja2.FunctionLoader(_no_other),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    return env


def render(template: jinja2.Template, request: dict[str, Any]) -> list[list[str] | dict[str, str]]:
    """Render all cuts of the chats in a request; a chat that fails gives an error instead."""
    now = request["now"]
    moment = datetime.datetime.fromisoformat(now) if now else datetime.datetime.now()

    def strftime_now(format: str) -> str:
        return moment.strftime(format)

    def text(
        messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]
    ) -> str:
        parts, size = [], 0
        for part in template.generate(
            **request["variables"] | variables,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            strftime_now=strftime_now,
        ):
            size += len(part)
            if size > MAX_TEXT:
                raise TooLong(f"more than {MAX_TEXT} characters")
            parts.append(part)
        return "".join(parts)

    def texts(chat: dict[str, Any]) -> list[str]:
        cuts = [(n, add) for n, add in chat["cuts"]]
        variables = chat.get("variables", {})
        by_cut = {cut: text(chat["messages"][: cut[0]], cut[1], variables) for cut in set(cuts)}
        return [by_cut[cut] for cut in cuts]

    out: list[list[str] | dict[str, str]] = []
    for chat in request["chats"]:
        try:
            out.append(texts(chat))
        except (MemoryError, RecursionError, TooLong, SecurityError):
            raise  # a process limit, after which the process is restarted
        except Exception as e:
            out.append(failure(e))
    return out


def failure(error: BaseException) -> dict[str, str]:
    """Return the reply that describes `error`."""
    kinds: list[tuple[type[BaseException], str]] = [
        (Raised, "raised"),
        (SecurityError, "security"),
        (jinja2.TemplateSyntaxError, "syntax"),
        (MemoryError, "memory"),
        (RecursionError, "recursion"),
        (TooLong, "size"),
    ]
    kind = next((k for cls, k in kinds if isinstance(error, cls)), "failed")
    message = f"{type(error).__name__}: {error}" if kind == "failed" else str(error)
    if isinstance(error, jinja2.TemplateSyntaxError):
        message = f"line {error.lineno}: {error.message}"
    return {"error": kind, "message": message[:2000]}


def limit_memory(extra: int) -> None:
    """Prevent this process from writing files and from growing by more than `extra` bytes.

    The memory limit depends on the current size of the process, which only Linux reports. Windows
    supports neither limit. The parent's time limit works on all systems.
    """
    try:
        import resource
    except ImportError:
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as f:
            base = int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (base + extra, base + extra))


def set_alarm() -> Callable[[float], object]:
    """Return a function that ends this process after a number of seconds; 0 cancels the alarm.

    The parent kills a child that takes too long; the alarm ends a child whose parent has died.
    """
    if not hasattr(signal, "setitimer"):
        return lambda seconds: None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)


def main(memory: int, seconds: float) -> None:
    """Answer requests until stdin is closed.

    `memory` is the memory limit in bytes, and `seconds` is the time limit for the alarm.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    env = environment()
    template = env.from_string("{{ strftime_now('%Y') }}{{ [1]|tojson }}")
    chat: dict[str, Any] = {"messages": [], "cuts": [[0, False]]}
    render(template, {"chats": [chat], "variables": {}, "now": None})
    limit_memory(memory)
    alarm = set_alarm()
    answers.write(b'{"ok": true}\n')
    answers.flush()
    for line in requests:
        alarm(seconds)
        answer: dict[str, Any]
        try:
            request = json.loads(line)
            if request["op"] == "compile":
                template = env.from_string(request["source"])
                answer = {"ok": True}
            else:
                answer = {"ok": render(template, request)}
            data = json.dumps(answer).encode()
        except BaseException as e:
            data = json.dumps(failure(e)).encode()
        alarm(0)
        answers.write(data + b"\n")
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
