"""Variables that users and records set for chat templates, such as `enable_thinking`."""

from __future__ import annotations

import re
from typing import Any

from nbllama.errors import shown

RESERVED = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "strftime_now")
"""Variables that the program itself passes to chat templates."""

# Names of switches: enable_thinking, clear_thinking, add_vision_id, thinking ...
_SWITCH = re.compile(r"(?:enable|disable|add|clear|keep|preserve|skip)_\w+|(?:\w+_)?thinking")
_BOOLEANS = {"true": True, "false": False}


def variable_value(name: str, value: Any) -> Any:
    """Return the value of a template variable, with "true" and "false" of a switch as booleans.

    A template compares a switch with false or only tests it, so a text or a number would have no
    effect or the opposite one. Raises `ValueError` with the reason if `value` is a text or a number
    that is not one of these words.
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return value
    if _SWITCH.fullmatch(name) is None:
        return value
    if isinstance(value, str) and (found := _BOOLEANS.get(value.strip().lower())) is not None:
        return found
    given = f'"{shown(value, 40)}"' if isinstance(value, str) else shown(value, 40)
    raise ValueError(f'"{shown(name, 40)}" must be true or false, not {given}')
