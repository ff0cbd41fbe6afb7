"""Types of option values: how each type is parsed, and how help and errors describe it."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from datetime import date
from typing import Any

from nbllama.errors import shown
from nbllama.options.steps import STEPS, parse_steps

SMALLEST, LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
"""Smallest and largest positive normal float32."""


class BadValue(ValueError):
    """Raised if a value has the right form but cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Text:
    """Any text, including the empty string."""

    metavar: str = "TEXT"

    def parse(self, text: str) -> str:
        """Return the text unchanged."""
        return text

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return "any text"


@dataclass(frozen=True)
class Words(Text):
    """Text that is used directly, rather than as a file name.

    The text must be UTF-8, regardless of the locale.
    """

    metavar: str = "TEXT"

    def parse(self, text: str) -> str:
        """Return the text. Raises `ValueError` if it is not UTF-8."""
        if any("\udc80" <= c <= "\udcff" for c in text):  # bytes that the locale could not decode
            return os.fsencode(text).decode("utf-8")
        return text

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return "UTF-8 text"


@dataclass(frozen=True)
class Whole:
    """An integer from `low` to `high`, inclusive."""

    low: int = 0
    high: int = 2**31 - 1
    metavar: str = "N"

    def parse(self, text: str) -> int:
        """Return the number. Raises `ValueError` if the text is not a number in the range."""
        number = int(text)
        if not self.low <= number <= self.high:
            raise ValueError(text)
        return number

    def allowed(self) -> str:
        """Describe the range, for help and errors."""
        if self.high == 2**31 - 1:
            return "a whole number" if self.low < -1 else f"a whole number, {self.low} or more"
        return f"a whole number from {self.low} to {self.high}"


class NotInFloat32(ValueError):
    """Raised for a number that is infinite or not normal in float32, which all computations use."""


@dataclass(frozen=True)
class Real:
    """A finite number from `low` to `high`; `above` excludes `low`, and `below` excludes `high`.

    The number must be 0 or normal in float32, because it will be used as a float32 value. `off` is
    the number that turns the option off, if `allowed` should mention it.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False  # exclude low itself
    below: bool = False  # exclude high itself
    metavar: str = "X"
    off: float | None = None

    def parse(self, text: str) -> float:
        """Return the number.

        Raises `NotInFloat32`. Raises `ValueError` if the text is not a number, or if the number is
        not finite or is out of range.
        """
        number = float(text)
        over = number > self.low if self.above else number >= self.low
        under = number < self.high if self.below else number <= self.high
        if not (math.isfinite(number) and over and under):
            raise ValueError(text)
        if number and not SMALLEST <= abs(number) <= LARGEST:
            raise NotInFloat32(text)
        return number

    def allowed(self) -> str:
        """Describe the range, for help and errors."""
        if math.isinf(self.low):
            return "a number"
        if math.isinf(self.high):
            return (
                f"a number above {self.low:g}" if self.above else f"a number, {self.low:g} or more"
            )
        if not self.above and not self.below:
            off = "" if self.off is None else f" ({self.off:g} turns it off)"
            return f"a number from {self.low:g} to {self.high:g}{off}"
        low = "above" if self.above else "at least"
        return (
            f"a number {low} {self.low:g} and {'below' if self.below else 'at most'} {self.high:g}"
        )


@dataclass(frozen=True)
class Choice:
    """One of a fixed set of words."""

    words: tuple[str, ...]
    metavar: str = "WORD"

    def parse(self, text: str) -> str:
        """Return the word. Raises `ValueError` for any other word."""
        if text not in self.words:
            raise ValueError(text)
        return text

    def allowed(self) -> str:
        """List the words, for help and errors."""
        *others, last = self.words
        return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Size:
    """A number of bytes, optionally with a unit: K or KB (1000), Ki or KiB (1024), M, G or T."""

    metavar: str = "SIZE"
    least: int = 1

    def parse(self, text: str) -> int:
        """Return the number of bytes. Raises `ValueError` for anything else."""
        match = re.fullmatch(r"(.*?)\s*(?:([KMGT])(I?))?B?", text.strip().upper())
        if match is None:
            raise ValueError(text)
        power = "KMGT".index(match[2]) + 1 if match[2] else 0
        number = float(match[1]) * (1024 if match[3] else 1000) ** power
        if not self.least <= number < 2**62:
            raise ValueError(text)
        return int(number)

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return ("" if self.least else "0 or ") + "a number of bytes, such as 750M, 1.5GB or 2GiB"


@dataclass(frozen=True)
class Port:
    """A local port, or 0 for any free port.

    The words on, true and yes mean 0, and the words off, false and no mean None.
    """

    metavar: str = "[PORT]"
    alone: str = "on"  # value to use if the option is given without a value

    def parse(self, text: str) -> int | None:
        """Return the port. Raises `ValueError` for a system port or any other text."""
        word = text.lower()
        if word in ("on", "true", "yes"):
            return 0
        if word in ("off", "false", "no"):
            return None
        number = int(text)
        if number and not 1024 <= number <= 65535:
            raise ValueError(text)
        return number

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return "no value, or a port from 1024 to 65535"


@dataclass(frozen=True)
class Day:
    """A date in the form `YYYY-MM-DD`."""

    metavar: str = "DATE"

    def parse(self, text: str) -> str:
        """Return `text` if it is a date; otherwise, raise `ValueError`."""
        return date.fromisoformat(text).isoformat()

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return "a date as YYYY-MM-DD"


@dataclass(frozen=True)
class Variables:
    """Variables for a chat template, in the syntax of `parse_variables`."""

    metavar: str = "NAME=VALUE,..."

    def parse(self, text: str) -> str:
        """Return the text unchanged. Raises `ValueError` if it cannot be parsed."""
        parse_variables(text)
        return text

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return "NAME=VALUE, or several separated by commas; values are JSON or text"


def parse_variables(text: str) -> dict[str, Any]:
    """Parse the value of `--template-vars`, such as "a=false,b=[1, 2],c=high".

    A value is JSON or, if it is not valid JSON, text up to the next comma. `True` and `False` are
    also read as booleans. Raises `BadValue` if a name is repeated, if the program itself passes a
    variable of that name to templates, or if the value of a switch is neither true nor false.
    Raises `ValueError` if the syntax is wrong.
    """
    from nbllama.text.variables import RESERVED, variable_value  # imports numpy

    out: dict[str, Any] = {}
    at = 0
    while at < len(text.rstrip()):
        name, equals, _ = text[at:].partition("=")
        at += len(name) + 1
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(text)
        if name in out:
            raise BadValue(f'"{shown(name, 40)}" is set twice; set it once')
        if name in RESERVED:
            raise BadValue(f'"{name}" is set by the program; leave it out')
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = _variable(text, at)
        try:
            out[name] = variable_value(name, value)
        except ValueError as e:
            raise BadValue(str(e)) from None
    return out


def _variable(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at `at`, and the position at which the next variable begins.

    Raises `ValueError` for a list, an object or a string in quotes that is not valid JSON.
    """
    comma = text.find(",", at)
    end = len(text) if comma < 0 else comma
    try:
        value, after = json.JSONDecoder().raw_decode(text, at)
        if text[after:].lstrip()[:1] not in ("", ","):
            raise ValueError(text)
        end = after + text[after:].find(",") if "," in text[after:] else len(text)
    except ValueError:
        if text[at : at + 1] in ("[", "{", '"'):
            raise ValueError(text) from None
        value = text[at:end].strip()
        value = {"True": True, "False": False}.get(value, value)
    return value, end + 1  # after the comma


@dataclass(frozen=True)
class Dumped:
    """Iterations and a pattern for array names, in the syntax of `nbllama.options.steps`."""

    metavar: str = "STEP:PATTERN"

    def parse(self, text: str) -> str:
        """Return the text unchanged. Raises `ValueError` if it cannot be parsed."""
        parse_steps(text)
        return text

    def allowed(self) -> str:
        """Describe the values, for help and errors."""
        return STEPS


Value = Text | Whole | Real | Choice | Day | Size | Port | Variables | Dumped
