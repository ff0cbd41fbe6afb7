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
    """Return the value of a template variable, converting "true" and "false" if it is a switch.

    Templates compare a switch with false or test its truth, so a string or number would have no
    effect, or the opposite effect. Raises `ValueError` with the reason if the value of a switch is
    a number, or a string other than "true" and "false".
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return value
    if _SWITCH.fullmatch(name) is None:
        return value
    if isinstance(value, str) and (found := _BOOLEANS.get(value.strip().lower())) is not None:
        return found
    given = f'"{shown(value, 40)}"' if isinstance(value, str) else shown(value, 40)
    raise ValueError(f'"{shown(name, 40)}" must be true or false, not {given}')
