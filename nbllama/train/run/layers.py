"""`--lora-layers`: the blocks that receive LoRA pairs."""

from __future__ import annotations

import re
from collections.abc import Collection

from nbllama.errors import UsageError, shown

_RANGE = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


def blocks(text: str, n_layer: int) -> tuple[int, ...]:
    """Return the block numbers selected by `all`, `first:N`, `last:N` or a list such as `4-11,20`.

    Raises `UsageError` for anything else, and for a block that is not in the model.
    """

    def refuse(why: str) -> UsageError:
        return UsageError(
            f"--lora-layers {shown(text)}: {why}; use all, first:N, last:N or a list such as "
            f"4-11,20 (the blocks are 0 to {n_layer - 1})"
        )

    if text == "all":
        return tuple(range(n_layer))
    word, colon, number = text.partition(":")
    if colon:
        if word not in ("first", "last") or not number.isascii() or not number.isdigit():
            raise refuse("invalid value")
        if not 1 <= int(number) <= n_layer:
            raise refuse(f"the model has {n_layer} blocks")
        first = 0 if word == "first" else n_layer - int(number)
        return tuple(range(first, first + int(number)))
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise refuse("invalid value")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high or high >= n_layer:
            raise refuse(f"there is no block {shown(part)}")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def as_text(numbers: Collection[int], n_layer: int) -> str:
    """Return a string that `blocks` parses to these numbers.

    The result is the same for equal sets of numbers.
    """
    if len(numbers) == n_layer:
        return "all"
    runs: list[list[int]] = []
    for i in sorted(numbers):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
