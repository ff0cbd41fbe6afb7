"""Numbers in JSON that remember how they are spelled."""

from __future__ import annotations

import math

from nbllama.errors import shown

QUOTE = "put it in quotes to keep it as text"


class SpelledFloat(float):
    """A number that is converted to text as it was spelled in the file, such as 1.50."""

    spelling: str

    def __str__(self) -> str:
        return self.spelling


def spelled(spelling: str) -> float:
    """Return a number with a fraction or an exponent, or raise `ValueError` if it is too large."""
    value = float(spelling)
    if repr(value) == spelling:
        return value
    if math.isinf(value):
        raise ValueError(f"the number {shown(spelling, 40)} is too large; {QUOTE}")
    found = SpelledFloat(value)
    found.spelling = spelling
    return found
