"""Convert tool calls to the form that a chat template accepts, or to text if it supports no calls.

Most templates expect the arguments of a call as an object, but some expect a string. If the form is
wrong, the template raises an error, prints the arguments as a Python dict, or encodes them twice.
Some templates write calls only in messages whose content is null. The form that a template needs is
determined once, by rendering a small chat.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.text.thoughts import thought_of, visible

OBJECT, TEXT, NONE = "object", "text", "none"


class Form(NamedTuple):
    """The form in which a template accepts tool calls.

    `arguments` is "object" or "text", or "none" if the template does not support calls. `null`
    means that calls are written only if the content is null, so empty content is replaced by null.
    """

    arguments: str
    null: bool = False


Message = dict[str, Any]
Render = Callable[[list[Message], Any], str | None]
"""Renders messages and tools (or None) without a generation prompt; returns None on failure."""

_NAME, _KEY, _VALUE = "zqname", "zqkey", "zqvalue"


def _probe(arguments: Any, content: str | None) -> list[Message]:
    function = {"name": _NAME, "arguments": arguments}
    call = {"id": "zqzqzqzq1", "type": "function", "function": function}
    return [
        {"role": "user", "content": "zqquestion"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
    ]


def _tool() -> Message:
    properties = {_KEY: {"type": "string", "description": "zq"}}
    parameters = {"type": "object", "properties": properties, "required": [_KEY]}
    function = {"name": _NAME, "description": "zq", "parameters": parameters}
    return {"type": "function", "function": function}


def form_of_calls(render: Render) -> Form:
    """Return the form in which a template accepts tool calls.

    The form is also "object" if the template rejects every call, so that calls in records are
    rejected with the message from the template.
    """
    failed = 0
    contents = ("", None, "zqcontent")
    tries = [(tools, content) for content in contents for tools in ([_tool()], None)]
    for tools, content in tries:
        as_object = render(_probe({_KEY: _VALUE}, content), tools)
        as_text = render(_probe(json.dumps({_KEY: _VALUE}), content), tools)
        if _is_whole(as_object):
            return Form(OBJECT, content is None)
        if _is_whole(as_text):
            return Form(TEXT, content is None)
        failed += as_object is None and as_text is None
    return Form(OBJECT if failed == len(tries) else NONE)


def _is_whole(text: str | None) -> bool:
    """Return whether a text contains the probe call, but not as a Python dict or encoded twice."""
    if text is None:
        return False
    at = text.rfind("zqquestion")
    if at >= 0:
        text = text[at:]
    found = all(word in text for word in (_NAME, _KEY, _VALUE))
    return found and f"'{_KEY}'" not in text and f'\\"{_KEY}' not in text


def with_arguments(messages: list[Message], form: Form) -> list[Message]:
    """Return `messages`, converting tool calls to the form that a template accepts."""
    return [_in_form(m, form) if m.get("tool_calls") else m for m in messages]


def _in_form(message: Message, form: Form) -> Message:
    content = message["content"]
    if form.arguments == NONE:
        lines = [content] if content.strip() else []
        content = "\n".join([*lines, *map(hermes, message["tool_calls"])])
        return {k: v for k, v in message.items() if k != "tool_calls"} | {"content": content}
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = function["arguments"]
        if form.arguments == TEXT:
            arguments = function.get("text") or json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {"name": function["name"], "arguments": arguments}})
    if form.null and not content.strip():
        content = None
    return {**message, "content": content, "tool_calls": calls}


def hermes(call: Message) -> str:
    """Return a call in the form that Hermes and Qwen models use: JSON between two tags."""
    function = call["function"]
    line = json.dumps(
        {"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False
    )
    return f"<tool_call>\n{line}\n</tool_call>"


def missing_in(text: str, message: Message) -> str:
    """Return the name of the first call in a message that is missing from the text, or "".

    A call is present if its name and all keys and values of its arguments are in the text. A name
    must occur at least once for each call to it, not counting the content and the thought.
    """
    calls = [call["function"] for call in message.get("tool_calls") or []]
    for function in calls:
        arguments = function["arguments"]
        if isinstance(arguments, str):
            if arguments in text and function["name"] in text:
                continue
            arguments = json.loads(arguments)
        pieces = [function["name"], *_leaves(arguments)]
        if not all(_has(text, piece) for piece in pieces):
            return str(function["name"])
    return _rarer_name(text, message, [str(call["name"]) for call in calls])


def _rarer_name(text: str, message: Message, names: list[str]) -> str:
    """Return the first name that occurs in the text less often than in `names`, or ""."""
    if len(names) < 2:
        return ""
    for words in (thought_of(message), visible(message)):
        if any(name in words and name != words for name in names):
            text = text.replace(words, "", 1)
    # The longest names come first, because a name can begin with another one.
    any_name = "|".join(map(re.escape, sorted(set(names), key=len, reverse=True)))
    n_written = Counter(re.findall(any_name, text))
    return next((name for name, n in Counter(names).items() if n_written[name] < n), "")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *(leaf for v in value.values() for leaf in _leaves(v))]
    if isinstance(value, list):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]


def _has(text: str, leaf: Any) -> bool:
    if type(leaf) is int:  # 4 is not in 14
        return re.search(rf"(?<!\d){leaf}(?!\d)", text) is not None
    forms = [str(leaf), json.dumps(leaf), json.dumps(leaf, ensure_ascii=False).strip('"')]
    if isinstance(leaf, str):
        forms += [leaf.strip(), json.dumps(leaf).strip('"')]
    return any(form in text for form in forms)
