"""Check the names, types and ranges of sampling settings given as keyword arguments."""

from __future__ import annotations

import difflib
import math
import operator
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from nbllama.errors import UsageError, shown
from nbllama.generation.sampling.params import SamplingParams

_WHOLE = {"seed", "top_k", "repeat_last_n", "mirostat"}
_LOWEST = {"seed": 0, "repeat_last_n": -1, "mirostat": 0}
_HIGHEST = {"seed": 2**32 - 1, "mirostat": 2}
# The other arguments of `Model.generate`, to suggest when a name is misspelt.
_ARGUMENTS = ("prompt", "adapter", "max_tokens", "temperature", "chat_template", "exact")


def sampling_params(temperature: float, given: Mapping[str, Any]) -> SamplingParams:
    """Return sampling settings from `given`, named as in llama.cpp.

    By default, the seed is random.

    Raises `UsageError` for an unknown name or an invalid value.
    """
    names = [f.name for f in fields(SamplingParams) if f.name != "temp"]
    values: dict[str, Any] = {"temp": _number("temperature", temperature)}
    for name, value in given.items():
        if name == "seed" and value is None:
            continue
        if name not in names:
            every = [*names, *_ARGUMENTS]
            near = ["temperature"] if name == "temp" else difflib.get_close_matches(name, every, 1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(names)}"
            raise UsageError(f"unknown setting '{shown(name)}'; {hint}")
        values[name] = _number(name, value)
    if values.get("repeat_penalty", 1.0) <= 0:
        raise UsageError("repeat_penalty: use a number above 0")
    values.setdefault("seed", secrets.randbelow(2**32))
    return SamplingParams(**values)


def _number(name: str, value: Any) -> int | float:
    if name in _WHOLE:
        low, high = _LOWEST.get(name, -(2**31)), _HIGHEST.get(name, 2**31 - 1)
        with suppress(TypeError):  # for a value that is not an integer
            if not isinstance(value, bool) and low <= operator.index(value) <= high:
                return operator.index(value)
        raise UsageError(
            f"{name}: '{shown(value)}' is not allowed; use a whole number from {low} to {high}"
        )
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool | str) and math.isfinite(value):
            return float(value)
    raise UsageError(f"{name}: '{shown(value)}' is not allowed; use a number")
