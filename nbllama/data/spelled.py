"""JSON numbers that keep their spelling from the file."""

from __future__ import annotations

import math

from nbllama.errors import DataError, shown

QUOTE = "put it in quotes to keep it as text"


class SpelledFloat(float):
    """A number whose text form is its spelling in the file, such as 1.50 or, as infinity, 1e999."""

    spelling: str

    def __str__(self) -> str:
        return self.spelling


class MinusZero(int):
    """The integer that the file spells -0."""

    def __str__(self) -> str:
        return "-0"


def spelled(spelling: str) -> float:
    """Parse a number with a fraction or an exponent; a number that is too large is infinite."""
    value = float(spelling)
    return value if repr(value) == spelling else _with_spelling(value, spelling)


def spelled_integer(spelling: str) -> float:
    """Parse an integer; an integer with too many digits for Python is infinite."""
    if spelling == "-0":
        return MinusZero()
    try:
        return int(spelling)
    except ValueError:
        return _with_spelling(math.inf, spelling)


def _with_spelling(value: float, spelling: str) -> SpelledFloat:
    number = SpelledFloat(value)
    number.spelling = spelling
    return number


def text_of_number(number: float) -> str:
    """Return a number as it is spelled in the file. Raises `DataError` if it is infinite."""
    if isinstance(number, float) and math.isinf(number):
        raise DataError(f"the number {shown(number, 40)} is too large; {QUOTE}")
    return str(number)
