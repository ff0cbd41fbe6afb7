"""Check the names, types and ranges of sampling settings given as keyword arguments."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np

from nbllama.arguments import described, whole
from nbllama.errors import UsageError, shown
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.sampling.ranges import ANY, RANGES

# The other arguments of `Model.generate`, to suggest when a name is misspelt.
_ARGUMENTS = ("prompt", "adapter", "max_tokens", "temperature", "chat_template", "exact")


def sampling_params(temperature: float, given: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling settings in `given`, whose keys are llama.cpp's names.

    If no seed is given, a random one is chosen.

    Raises `UsageError` for an unknown name or an invalid value.
    """
    names = [f.name for f in fields(SamplingParams) if f.name != "temp"]
    values: dict[str, Any] = {"temp": _number("temp", "temperature", temperature)}
    for name, value in given.items():
        if name == "seed" and value is None:
            continue
        if name not in names:
            every = [*names, *_ARGUMENTS]
            near = difflib.get_close_matches(name, every, 1, 0.7)
            near = ["temperature"] if name == "temp" else near
            hint = f"did you mean {near[0]}?" if near else f"valid names: {', '.join(names)}"
            raise UsageError(f"unknown setting '{shown(name)}'; {hint}")
        values[name] = _number(name, name, value)
    values.setdefault("seed", secrets.randbelow(2**32))
    return SamplingParams(**values)


def _number(name: str, shown_as: str, value: Any) -> int | float:
    """Return the value of a setting as a Python number. Raises `UsageError`."""
    low, high, off, is_whole = RANGES[name]
    if is_whole:
        return whole(shown_as, value, int(low), int(high))
    with suppress(TypeError, ValueError, OverflowError):  # for a value that is not a number
        number = None if isinstance(value, bool | str) else float(value)
        if number is not None and low <= number <= high:
            if number and abs(number) < np.finfo(np.float32).tiny:
                raise UsageError(f"{shown_as}: {shown(value)} is not a normal float32")
            return number
    hint = "" if off is None else f" ({off:g} turns it off)"
    allowed = "a number" if RANGES[name] == ANY else f"a number from {low:g} to {high:g}{hint}"
    raise UsageError(f"{shown_as}: {described(value)} is not allowed; use {allowed}")
