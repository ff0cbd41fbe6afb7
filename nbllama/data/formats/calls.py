"""Tool calls in a message: OpenAI's "tool_calls", the older "function_call", and variants."""

from __future__ import annotations

from typing import Any

from nbllama.data.folding import fold
from nbllama.data.formats.checks import Record, check_json, kind_of, text_of
from nbllama.data.formats.masks import check_whole
from nbllama.data.formats.record import Message
from nbllama.data.json_text import value_of
from nbllama.errors import DataError, shown

CALLING_ROLES = ("function_call", "tool_call")
"""The roles of messages whose text is a tool call in JSON."""
RESULT_ROLES = ("observation", "function_response", "tool_response")
"""The roles that results of tool calls have in chats with `CALLING_ROLES`."""
CALL_KEYS = frozenset(("name", "id", "type", "index", "function", "description", "strict"))
"""The keys of a tool call other than those for its arguments."""
ARGUMENT_KEYS = ("arguments", "parameters", "input")
READ_IN_CALLS = CALL_KEYS.union(ARGUMENT_KEYS)
# Keys that are probably meant to contain the arguments, but that are not read.
_LIKE_ARGUMENTS = frozenset(
    ("argument", "args", "arg", "kwargs", "params", "parameter", "inputs", "tool_input")
)
_EMPTY: tuple[Any, ...] = (None, "", {}, [])


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
        calls = value_of(calls, f'{where}"tool_calls"')
    if isinstance(old, str) and old.strip():
        old = value_of(old, f'{where}"function_call"')
    if calls and not isinstance(calls, list):
        raise DataError(f'{where}"tool_calls" must be a list, not {kind_of(calls)}')
    found = list(calls or [])
    if old:
        if found:
            raise DataError(f'{where}use either "tool_calls" or "function_call", not both')
        found = [old]
    return [_call(call, where) for call in found]


def calls_in_text(text: str, where: str) -> tuple[list[Message], str]:
    """Return the calls and the remaining text of a message with one of the `CALLING_ROLES`.

    Text that begins like JSON is a call or a list of calls; any other text is a plain answer.
    """
    if not text.lstrip().startswith(("{", "[")):
        return [], text
    calls = value_of(text, f"{where}the call")
    calls = calls if isinstance(calls, list) else [calls]
    return [_call(call, where) for call in calls], ""


def _call(call: Any, where: str) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise DataError(f'{where}"tool_calls" contains an entry without a function')
    name = text_of(function, "name", f"{where}a tool call: ")
    if not name.strip():
        raise DataError(f"{where}a tool call has an empty name")
    what = f"{where}the call to '{shown(name, 40)}'"
    if function is not call:
        _check_outer(call, what)
    check_whole(function, what)
    key = _key_of_arguments(function, what)
    arguments, text = _arguments(function.get(key) if key else None, name, where)
    out: Message = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if text:
        out["function"]["text"] = text
    if call.get("id"):
        out = {"id": text_of(call, "id", f"{where}a tool call: "), **out}
    return out


def _check_outer(call: Record, what: str) -> None:
    """Raise `DataError` if a call has arguments or a mask key next to its "function"."""
    if call.keys() <= CALL_KEYS:
        return
    check_whole(call, what)
    for key, value in call.items():
        if fold(key) in _LIKE_ARGUMENTS.union(ARGUMENT_KEYS) and value not in _EMPTY:
            raise DataError(
                f'{what} has "{shown(key, 40)}" next to "function"; move it into "function"'
            )


def _key_of_arguments(function: Record, what: str) -> str | None:
    """Return the key that contains the arguments of a call, or None if there are none."""
    given = [key for key in ARGUMENT_KEYS if function.get(key) not in _EMPTY]
    if len(given) > 1:
        raise DataError(f'{what} has arguments under both "{given[0]}" and "{given[1]}"')
    if not function.keys() <= CALL_KEYS.union(given):
        named = any(key in function for key in ARGUMENT_KEYS)
        for key, value in function.items():
            if key in CALL_KEYS or key in ARGUMENT_KEYS or value in _EMPTY:
                continue
            if not named:
                raise DataError(
                    f'{what} has no "arguments", and the key "{shown(key, 40)}" is unknown'
                )
            if fold(key) in _LIKE_ARGUMENTS.union(ARGUMENT_KEYS):
                raise DataError(
                    f'{what} has the unknown key "{shown(key, 40)}" next to its arguments; put all '
                    'arguments under "arguments"'
                )
    return given[0] if given else None


def _arguments(value: Any, name: str, where: str) -> tuple[Record, str]:
    """Return the arguments as an object, and the original JSON string if they were given as one."""
    what = f"{where}the arguments of a tool call"
    text = ""
    for _ in range(3):  # the object may be encoded as JSON several times
        if not isinstance(value, str):
            break
        text = value
        if not value.strip():
            return {}, ""
        value = value_of(value, what)
    if value is None:
        return {}, ""
    if not isinstance(value, dict):
        raise DataError(
            f"{where}the arguments of '{shown(name, 40)}' must be an object, not {kind_of(value)}"
        )
    check_json(value, f"{where}the arguments of a tool call")
    return value, text
