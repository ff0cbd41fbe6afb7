"""Parse `STEP:PATTERN`, which selects iterations and the arrays to dump in each of them."""

from __future__ import annotations

import re

STEPS = "an iteration (12), a list (1,10,100) or a range (1-5), followed by a colon and a pattern"


def parse_steps(text: str) -> tuple[frozenset[int], str]:
    """Return the iterations and the pattern in `STEP:PATTERN`. Raises `ValueError`."""
    steps, colon, pattern = text.partition(":")
    if not colon or not pattern.strip(", "):
        raise ValueError(text)
    found: set[int] = set()
    for part in steps.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]) or int(match[1]) < 1:
            raise ValueError(text)
        found.update(range(int(match[1]), min(int(match[2] or match[1]), int(match[1]) + 9999) + 1))
    return frozenset(found), pattern
