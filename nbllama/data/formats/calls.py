"""Tool calls in a message: OpenAI's "tool_calls", the older "function_call", and variants."""

from __future__ import annotations

import json
from typing import Any

from nbllama.data.formats.record import Message, Record, check_json, kind_of, text_of
from nbllama.errors import DataError, shown

_ARGUMENTS = ("arguments", "parameters", "input")
_OTHER = ("name", "id", "type", "index", "function", "description", "strict")


def calls_of(message: Record, where: str) -> list[Message]:
    """Return the tool calls of a message.

    Each call is {"id", "type", "function": {"name", "arguments", "text"}}, where "arguments" is an
    object, and "text" is the original JSON string if the arguments were given as a string.

    Raises `DataError` with a message that begins with `where`.
    """
    calls, old = message.get("tool_calls"), message.get("function_call")
    if not calls and not old:
        return []
    if isinstance(calls, str) and calls.strip():
        calls = _json(calls, f'{where}"tool_calls"')
    if isinstance(old, str) and old.strip():
        old = _json(old, f'{where}"function_call"')
    if calls and not isinstance(calls, list):
        raise DataError(f'{where}"tool_calls" must be a list, not {kind_of(calls)}')
    found = list(calls or [])
    if old:
        if found:
            raise DataError(f'{where}use either "tool_calls" or "function_call", not both')
        found = [old]
    return [_call(call, where) for call in found]


def call_of(value: Any, where: str) -> Message:
    """Return one tool call. Raises `DataError`."""
    return _call(value, where)


def _call(call: Any, where: str) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise DataError(f'{where}"tool_calls" contains an entry without a function')
    name = text_of(function, "name", f"{where}a tool call: ")
    if not name.strip():
        raise DataError(f"{where}a tool call has an empty name")
    key = _key_of_arguments(function, name, where)
    arguments, text = _arguments(function.get(key) if key else None, name, where)
    out: Message = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if text:
        out["function"]["text"] = text
    if call.get("id"):
        out = {"id": text_of(call, "id", f"{where}a tool call: "), **out}
    return out


def _key_of_arguments(function: Record, name: str, where: str) -> str | None:
    """Return the key that contains the arguments of a call, or None if there are none."""
    given = [key for key in _ARGUMENTS if function.get(key) not in (None, "", {})]
    if len(given) > 1:
        raise DataError(
            f"{where}the call to '{shown(name, 40)}' has arguments under both \"{given[0]}\" and "
            f'"{given[1]}"'
        )
    if given:
        return given[0]
    if not any(key in function for key in _ARGUMENTS):
        for key, value in function.items():
            if key not in _OTHER and value not in (None, "", {}):
                raise DataError(
                    f"{where}the call to '{shown(name, 40)}' has no \"arguments\", and the key "
                    f'"{shown(key, 40)}" is unknown'
                )
    return None


def _arguments(value: Any, name: str, where: str) -> tuple[Record, str]:
    """Return the arguments as an object, and the original JSON string if they were given as one."""
    what = f"{where}the arguments of a tool call"
    text = ""
    for _ in range(3):  # an object, which can be encoded as JSON several times
        if not isinstance(value, str):
            break
        text = value
        if not value.strip():
            return {}, ""
        value = _json(value, what)
    if value is None:
        return {}, ""
    if not isinstance(value, dict):
        raise DataError(
            f"{where}the arguments of '{shown(name, 40)}' must be an object, not {kind_of(value)}"
        )
    check_json(value, f"{where}the arguments of a tool call")
    return value, text


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{what} must be valid JSON") from e
