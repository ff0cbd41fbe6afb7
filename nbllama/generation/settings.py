"""Check the names, types and ranges of sampling settings given as keyword arguments."""

from __future__ import annotations

import difflib
import operator
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from nbllama.errors import UsageError, shown
from nbllama.generation.sampling.params import SamplingParams
from nbllama.options.sampling import RANGES
from nbllama.options.values import NotInFloat32, Real, Whole

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
            near = ["temperature"] if name == "temp" else difflib.get_close_matches(name, every, 1)
            hint = f"did you mean {near[0]}?" if near else f"valid names: {', '.join(names)}"
            raise UsageError(f"unknown setting '{shown(name)}'; {hint}")
        values[name] = _number(name, name, value)
    values.setdefault("seed", secrets.randbelow(2**32))
    return SamplingParams(**values)


def _number(name: str, shown_as: str, value: Any) -> int | float:
    """Return the value of a setting as a Python number. Raises `UsageError`."""
    allowed = RANGES[name]
    with suppress(TypeError, ValueError, OverflowError):
        if isinstance(allowed, Whole) and not isinstance(value, bool):
            return allowed.parse(str(operator.index(value)))
        if isinstance(allowed, Real) and not isinstance(value, bool | str):
            try:
                return allowed.parse(repr(float(value)))
            except NotInFloat32:
                raise UsageError(f"{shown_as}: {shown(value)} is not a normal float32") from None
    raise UsageError(f"{shown_as}: '{shown(value)}' is not allowed; use {allowed.allowed()}")
