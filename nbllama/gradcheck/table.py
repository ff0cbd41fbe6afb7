"""The results of `check` as a table, with one row per kind of tensor or per tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nbllama.errors import shown
from nbllama.gradcheck.check import Checked

_BLOCK = re.compile(r"^blk\.[0-9]+\.")


def table(found: Sequence[Checked], every: bool) -> str:
    """Return a table of the largest errors, one row per kind of tensor and weight type.

    With `every`, return one row per tensor.
    """
    groups: dict[tuple[str, str], list[Checked]] = {}
    for c in found:
        groups.setdefault((c.name if every else _BLOCK.sub("", c.name), c.type), []).append(c)
    rows: list[tuple[str, ...]]
    rows = [("tensor", "type", "tensors", "|g| of A", "error", "|g| of B", "error", "verdict")]
    for (name, kind), group in groups.items():
        halves = [_half([c for c in group if c.half == h]) for h in ("lora_a", "lora_b")]
        verdicts = {c.verdict for c in group}
        verdict = "WRONG" if "WRONG" in verdicts else "ok" if "ok" in verdicts else "zero"
        if verdict == "ok" and "zero" in verdicts:
            verdict = "ok (one half zero)"
        count = str(len({c.name for c in group}))
        rows.append((shown(name.removesuffix(".weight"), 60), kind, count, *halves[0], *halves[1],
                     verdict))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
    return "\n".join(lines) + "\n"


def _half(halves: Sequence[Checked]) -> tuple[str, str]:
    """Return the largest gradient norm and error; NaN is treated as larger than any number."""
    errors = [c.error for c in halves if c.length]
    worst = "-" if not errors else f"{max(errors, key=lambda e: (math.isnan(e), e)):.1e}"
    return f"{max(c.length for c in halves):.2e}", worst
