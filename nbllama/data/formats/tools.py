"""The tools and the template variables of a record."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nbllama.data.formats.checks import Record, check_json, kind_of
from nbllama.data.json_text import value_of
from nbllama.errors import DataError, shown
from nbllama.text.variables import RESERVED, variable_value

SCHEMA_KEYS = ("input_schema", "inputSchema")
"""The keys for the parameters of a tool in Anthropic's API and in MCP."""
_LISTS = ("functionDeclarations", "function_declarations")  # of Gemini


def tools_of(record: Record) -> list[Any] | None:
    """Return the tools under "tools" or the older "functions" (a list, or a list as JSON text).

    A bare function is wrapped in {"type": "function", "function": ...}, as servers require, and its
    parameters can be under one of the `SCHEMA_KEYS`. Raises `DataError`.
    """
    found = [tools for key in ("tools", "functions") if (tools := _tools(record, key))]
    if len(found) > 1 and found[0] != found[1]:
        raise DataError('"tools" and "functions" contain different tools; keep one of them')
    return found[0] if found else None


def _tools(record: Record, key: str) -> list[Any]:
    tools = record.get(key)
    if isinstance(tools, str):
        tools = value_of(tools, f'"{key}"') if tools.strip() else None
    if not tools:
        return []
    if not isinstance(tools, list):
        raise DataError(f'"{key}" must be a list, not {kind_of(tools)}')
    out = []
    for tool in _single(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f'"{key}" contains an entry that is not a function with a name')
        if not function.keys().isdisjoint(SCHEMA_KEYS):
            function = _with_parameters(function)
            tool = tool | {"function": function} if "function" in tool else function
        out.append(tool if "function" in tool else {"type": "function", "function": tool})
    check_json(out, f'"{key}"')
    return out


def _single(tools: list[Any]) -> list[Any]:
    """Return the tools, with each of Gemini's lists of functions replaced by its functions."""
    out = []
    for tool in tools:
        lists = [tool.get(key) for key in _LISTS] if isinstance(tool, dict) else []
        functions = next((value for value in lists if isinstance(value, list)), None)
        out += [tool] if functions is None else functions
    return out


def _with_parameters(function: Record) -> Record:
    """Return a function of Anthropic's API or MCP with its parameters where templates expect them.

    Raises `DataError` if it has different parameters under several keys.
    """
    given = [function[k] for k in ("parameters", *SCHEMA_KEYS) if function.get(k) is not None]
    if any(value != given[0] for value in given):
        raise DataError(
            f"the tool '{shown(function['name'], 40)}' has different parameters under several keys"
        )
    rest = {key: value for key, value in function.items() if key not in SCHEMA_KEYS}
    return rest | {"parameters": given[0]} if given else rest


def variables_of(record: Record) -> dict[str, Any] | None:
    """Return the template variables under "chat_template_kwargs". Raises `DataError`.

    The values of switches are not checked, because the template may not use them (`switched`).
    """
    value = record.get("chat_template_kwargs")
    if isinstance(value, str) and value.strip():
        value = value_of(value, '"chat_template_kwargs"')
    if not value:
        return None
    if not isinstance(value, dict):
        raise DataError(f'"chat_template_kwargs" must be an object, not {kind_of(value)}')
    for name in value:
        if name in RESERVED or not name.isidentifier():
            raise DataError(f'"chat_template_kwargs" must not set "{shown(name, 40)}"')
    check_json(value, '"chat_template_kwargs"')
    return value


def switched(variables: dict[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Return the variables of a record with true and false as the values of switches.

    Variables whose names are not in `used` stay unchanged. Raises `DataError` if the value of a
    switch is neither true nor false.
    """
    try:
        return {n: variable_value(n, v) if n in used else v for n, v in variables.items()}
    except ValueError as e:
        raise DataError(f'"chat_template_kwargs": {e}') from None
