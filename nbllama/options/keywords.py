"""Options as keyword arguments of a Python function.

Names, values and messages are the same as on the command line: keywords are converted to
command-line arguments.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from nbllama.errors import UsageError, shown
from nbllama.options.file_names import File, check_name
from nbllama.options.parser import Option, read
from nbllama.options.values import Text, Variables


def keyword_words(
    options: Sequence[Option], given: Mapping[str, Any], familiar: Mapping[str, str]
) -> list[str]:
    """Convert the options in `given`, keyed by Python name, to command-line arguments.

    A key is any long name of an option, without the leading dashes and with `_` instead of `-`.
    None means "not given". Switches accept True or False. Options that can be repeated, and options
    whose value is a comma-separated list, also accept a Python list. Pairs of names and values can
    also be a dict.

    Raises `UsageError` for an unknown name (with a suggestion), for two names that refer to the
    same option, and for a value whose type has no command-line form. The values themselves are
    checked later, when the words are parsed.
    """
    by_name = {_python(n): o for o in options for n in o.names if n.startswith("--")}
    words: list[str] = []
    seen: dict[str, str] = {}
    for name, value in given.items():
        option = by_name.get(name)
        if option is None:
            raise _unknown(name, options, familiar)
        if option.dest in seen:
            raise UsageError(f"{name} and {seen[option.dest]} are the same option")
        seen[option.dest] = name
        if value is not None:
            words += _words(name, option, value)
    return words


def _words(name: str, option: Option, value: Any) -> list[str]:
    if option.value is None:
        # numpy has its own bool type
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
            raise UsageError(f"{name}: '{shown(value)}' is not allowed; use True or False")
        return [option.names[0]] if value else [*option.off[:1]]
    if option.many and isinstance(value, list | tuple):
        return [f"{option.names[0]}={_text(name, each)}" for each in value]
    if isinstance(option.value, Variables) and isinstance(value, Mapping):
        value = _variables(name, value)
    if isinstance(option.value, Text) and option.value.metavar.endswith(",..."):
        if isinstance(value, Mapping):
            value = [f"{_text(name, k)}={_text(name, v)}" for k, v in value.items()]
        if isinstance(value, list | tuple):
            value = ",".join(_text(name, each) for each in value)
    if isinstance(option.value, Text):
        _check_text(name, option.value, value)
    return [f"{option.names[0]}={_text(name, value)}"]


def _variables(name: str, values: Mapping[str, Any]) -> str:
    """Return template variables as a user would type them, with values in JSON."""
    try:
        return ",".join(
            f"{_text(name, key)}={json.dumps(value, ensure_ascii=False, allow_nan=False)}"
            for key, value in values.items()
        )
    except (TypeError, ValueError) as e:
        raise UsageError(f"{name}: the values must be JSON, such as False or 'high': {e}") from None


def _check_text(name: str, kind: Text, value: Any) -> None:
    """Refuse a boolean, which would become the text "True", and a number as a file name."""
    is_file = isinstance(kind, File)
    if isinstance(value, bool) or (is_file and isinstance(value, Real)):
        use = 'a file name, or "" for no file' if is_file else "a string"
        raise UsageError(f"{name}: '{shown(value)}' is not allowed; use {use}")
    if is_file:
        check_name(name, _text(name, value))


def _text(name: str, value: Any) -> str:
    """Return a value as a user would type it; numbers keep their full precision."""
    if isinstance(value, str | os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, bool):
        return str(value)  # rejected by every number parser
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise UsageError(f"{name}: a value of type {type(value).__name__} is not allowed")


def _python(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _unknown(name: str, options: Sequence[Option], familiar: Mapping[str, str]) -> UsageError:
    """Return the command line's error for an unknown option, but with Python names."""
    for o in options:
        if f"--{name.replace('_', '-')}" in o.off:
            return UsageError(f"unknown option '{shown(name)}'; pass {o.dest}=False")
    try:
        read(options, [f"--{name.replace('_', '-')}"], familiar)
    except UsageError as e:
        text = str(e).replace("--help lists them all", "docs/options.md lists them all")
        return UsageError(re.sub(r"--[a-z][a-z0-9-]*", lambda found: _python(found[0]), text))
    return UsageError(f"unknown option '{shown(name)}'; docs/options.md lists them all")
