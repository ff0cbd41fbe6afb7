"""JSON numbers that keep their spelling from the file."""

from __future__ import annotations

import math

from nbllama.errors import shown

QUOTE = "put it in quotes to keep it as text"


class SpelledFloat(float):
    """A number whose text form is its spelling in the file, such as 1.50."""

    spelling: str

    def __str__(self) -> str:
        return self.spelling


def spelled(spelling: str) -> float:
    """Parse a number with a fraction or an exponent. Raises `ValueError` if it is too large."""
    value = float(spelling)
    if repr(value) == spelling:
        return value
    if math.isinf(value):
        raise ValueError(f"the number {shown(spelling, 40)} is too large; {QUOTE}")
    found = SpelledFloat(value)
    found.spelling = spelling
    return found
