"""The part of a chat that is trained, computed with jinja2 as `transformers` configures it.

It is independent of nbllama's code: it uses the marks of known templates directly.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 3, 5)
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
_TAIL = re.compile(
    r"(?:<think>\s*(?:</think>\s*)?|</think>\s*|<\|channel>thought\n<channel\|>"
    r"|<\|START_THINKING\|>(?:<\|END_THINKING\|>)?)$"
)
_HEADS = ("[/INST]", "<|CHATBOT_TOKEN|>", "<|im_start|>assistant\n")
_CLOSED = ("</think>", "<channel|>", "<|END_THINKING|>")


class Refused(Exception):
    """The template refuses the chat, or fails."""


class Pair(NamedTuple):
    """An answer after its prompt. `told`: a part of it is lost, which must be reported."""

    prompt: str
    answer: str
    told: bool = False


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    def fail(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = fail
    env.globals["strftime_now"] = NOW.strftime
    return env


class Reference:
    """The rule for one template. `bos`, `eos`: texts that it may write; `ends`: texts of the tokens
    that end a generation.
    """

    def __init__(self, source: str, bos: str, eos: str, ends: Sequence[str]) -> None:
        self._template = _environment().from_string(source)
        self._texts = {"bos_token": bos, "eos_token": eos}
        self._ends = [end for end in ends if end]

    def render(self, messages: list[Any], prompt: bool, tools: Any) -> str:
        more = {"tools": tools} if tools else {}
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=prompt, **self._texts, **more
            )
        except Exception as e:
            raise Refused(f"{type(e).__name__}: {e}") from e

    def pairs(self, chat: dict[str, Any]) -> list[Pair] | None:
        """Every answer after its prompt; None if the rule refuses the chat. Raises `Refused`
        if the template does.
        """
        failed: Refused | None = None
        shown = False
        for form in ("object", "text", "object, null", "text, null"):
            try:
                found = self._pairs(chat, form)
            except Refused as e:
                failed = failed or e
                continue
            shown = True
            if not any(m.get("tool_calls") for m in chat["messages"]):
                return found
            if found is not None and _is_call(found[0].answer):
                return found
        if failed is not None and not shown:
            raise failed
        found = self._pairs(chat, "hermes")
        return found and [pair._replace(told=True) for pair in found]

    def _pairs(self, chat: dict[str, Any], form: str) -> list[Pair] | None:
        messages = [_message(m, form) for m in chat["messages"]]
        out = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], True, chat.get("tools"))
            through = self.render(messages[: i + 1], False, chat.get("tools"))
            answer = _answer(before, through, message)
            if answer is None:
                return None
            words = _last_words(message)
            thought = _thought(message)
            at = answer.rfind(words) + len(words) if words in answer else 0
            ends = [(answer.find(end, at), end) for end in self._ends]
            found = sorted((p, -len(end)) for p, end in ends if p >= 0)
            if found:
                answer = answer[: found[0][0] - found[0][1]]
            out.append(Pair(before, answer, bool(thought) and thought not in answer))
        return out


def _message(message: dict[str, Any], form: str) -> dict[str, Any]:
    out = dict(message)
    if out.get("reasoning_content"):
        out |= dict.fromkeys(THOUGHT_KEYS, out["reasoning_content"])
    if not out.get("tool_calls"):
        return out
    (call,) = out["tool_calls"]
    function = dict(call["function"])
    arguments = function["arguments"]
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if form == "hermes":
        line = json.dumps({"name": function["name"], "arguments": arguments})
        del out["tool_calls"]
        return out | {"content": f"<tool_call>\n{line}\n</tool_call>"}
    function["arguments"] = arguments if "object" in form else json.dumps(arguments)
    if "null" in form:
        out["content"] = None
    return out | {"tool_calls": [{**call, "function": function}]}


def _is_call(text: str) -> bool:
    words = all(word in text for word in ("platform", "number", "3", "day", "Tuesday"))
    return words and "'number'" not in text and '\\"number' not in text


def _thought(message: dict[str, Any]) -> str:
    inside = re.search(r"<think>(.*?)</think>", message["content"] or "", re.DOTALL)
    return message.get("reasoning_content") or (inside.group(1).strip() if inside else "")


def _last_words(message: dict[str, Any]) -> str:
    if message.get("tool_calls"):
        return "Tuesday"
    return str(message["content"].split("</think>")[-1].strip())


def _answer(before: str, through: str, message: dict[str, Any]) -> str | None:
    if through.startswith(before):
        return through[len(before) :]
    tail = _TAIL.search(before)
    base = before[: tail.start()] if tail else before
    held = tail.group() if tail else ""
    if not through.startswith(base):
        # Mistral has the system message in the last question, Command R+ its tools after it;
        # Qwen 3 and others write earlier answers differently once a later one follows them.
        head = next((h for h in _HEADS if base.endswith(h) and h in through), None)
        if head is None and any(mark in held for mark in _CLOSED) and not _thought(message):
            # Gemma 4 continues the turn of the previous answer.
            common = len(os.path.commonprefix([base, through]))
            return through[common:] if through[common:].startswith(message["content"]) else None
        if head is None:
            return None
        base = through[: through.rindex(head) + len(head)]
    rest, thought = through[len(base) :], _thought(message)
    if not held:
        return rest
    if any(mark in held for mark in _CLOSED):
        if thought:
            return None
        return re.sub(r"^\s*(<think>\s*)?</think>", "", rest)
    opener = held.strip()
    if "START" in opener and "</think>" in rest:
        return None  # a thought in other marks
    if rest.lstrip().startswith(opener):
        return rest.lstrip()[len(opener) :]
    if rest.lstrip().startswith(("</think>", "<|END_THINKING|>")):
        return rest
    closer = "<|END_THINKING|>" if "START" in opener else "\n</think>\n\n"
    return thought + closer + rest
