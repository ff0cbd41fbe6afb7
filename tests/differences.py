"""Measured differences between our kernels and a reference, each with its upper bound.

With `NBLLAMA_DIFFERENCES=FILE` in the environment every measurement is also appended to FILE as a
JSON line; `python -m tests.differences FILE` prints the largest of each name as a table.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest |got - wanted| divided by the largest |wanted|; NaN and wrong shapes are inf."""
    if got.shape != wanted.shape:
        return float("inf")
    scale = np.abs(wanted).max()
    worst = np.abs(got.astype(np.float64) - wanted).max() / (scale if scale > 0 else 1.0)
    return float(worst) if np.isfinite(worst) else float("inf")


def record(name: str, value: float, bound: float) -> float:
    """Record a measured `value` (NaN counts as infinite); assert that it is at most `bound`."""
    value = float("inf") if np.isnan(value) else value
    if path := os.environ.get("NBLLAMA_DIFFERENCES"):
        with open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"name": name, "value": value, "bound": bound}) + "\n")
    assert value <= bound, f"{name}: difference {value:.3g} is over {bound:.3g}"
    return value


def compare(name: str, got: np.ndarray, wanted: np.ndarray, bound: float) -> float:
    """Record the relative difference of two arrays of one shape."""
    return record(name, relative(got, wanted), bound)


def table(lines: Iterable[str]) -> str:
    """Markdown table of the worst measurement of each name, from JSON lines."""
    worst: dict[str, dict[str, float]] = {}
    for line in lines:
        row = json.loads(line)
        if row["name"] not in worst or row["value"] > worst[row["name"]]["value"]:
            worst[row["name"]] = row
    head = ["| what | largest difference | bound |", "| --- | --- | --- |"]
    rows = [f"| {n} | {r['value']:.2e} | {r['bound']:.0e} |" for n, r in sorted(worst.items())]
    return "\n".join(head + rows)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
