"""Statistics of arrays and of the differences between two dumps, and tables of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nbllama.errors import shown
from nbllama.peek.names import kind_of


class Statistics(NamedTuple):
    """Statistics of the finite numbers in an array; `odd` is the number of NaNs and infinities.

    If there are no finite numbers, the mean, standard deviation, minimum and maximum are NaN.
    """

    mean: float
    std: float
    low: float
    high: float
    zeros: int
    odd: int


def statistics(x: np.ndarray) -> Statistics:
    """Compute the statistics of an array, in float64."""
    flat = np.asarray(x, np.float64).reshape(-1)
    good = flat[np.isfinite(flat)]
    odd = flat.size - good.size
    if not good.size:
        return Statistics(math.nan, math.nan, math.nan, math.nan, 0, odd)
    return Statistics(
        float(good.mean()), float(good.std()), float(good.min()), float(good.max()),
        int((good == 0).sum()), odd,
    )  # fmt: skip


def _shape(x: np.ndarray) -> str:
    return " x ".join(map(str, x.shape)) or "1"


def table(dump: Mapping[str, np.ndarray], values: int = 0) -> str:
    """Return a table with one line per array, and below it the array's first `values` numbers."""
    rows: list[tuple[str, ...]]
    rows = [("name", "kind", "shape", "dtype", "mean", "std", "min", "max", "zeros", "not finite")]
    lines = {}
    for name, x in dump.items():
        s = statistics(x)
        numbers = (f"{v:.4g}" for v in s[:4])
        counts = (str(s.zeros), str(s.odd))
        rows.append((shown(name, 80), kind_of(name), _shape(x), str(x.dtype), *numbers, *counts))
        if values:
            first = ", ".join(f"{v:.6g}" for v in x.reshape(-1)[:values])
            lines[len(rows)] = f"    {first}{', ...' if x.size > values else ''}"
    return _text(rows, lines)


def _text(rows: list[tuple[str, ...]], after: dict[int, str] | None = None) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out = []
    for i, row in enumerate(rows, start=1):
        cells = zip(row, widths, strict=True)
        out.append("  ".join(cell.ljust(w) for cell, w in cells).rstrip())
        if after and i in after:
            out.append(after[i])
    return "\n".join(out) + "\n"


class Difference(NamedTuple):
    """The difference between two arrays with the same name.

    `largest` is max |a - b|, `relative` is `largest` / max |a|, and `changed` is the number
    of elements that differ. `why` says why the arrays cannot be compared, or is "".
    """

    name: str
    largest: float
    relative: float
    changed: int
    size: int
    why: str = ""

    @property
    def same(self) -> bool:
        """Whether the arrays can be compared and are equal."""
        return not self.changed and not self.why


def difference(name: str, a: np.ndarray | None, b: np.ndarray | None) -> Difference:
    """Compare two arrays; None means missing. NaN equals NaN, and an infinity equals itself."""
    if a is None or b is None:
        return Difference(name, math.nan, math.nan, 0, 0, f"only in {'B' if a is None else 'A'}")
    if a.shape != b.shape:
        return Difference(name, math.nan, math.nan, 0, a.size, f"{_shape(a)} and {_shape(b)}")
    wide_a, wide_b = (np.asarray(x, np.float64) for x in (a, b))
    differ = (wide_a != wide_b) & ~(np.isnan(wide_a) & np.isnan(wide_b))
    if not differ.any():
        return Difference(name, 0.0, 0.0, 0, a.size)
    with np.errstate(invalid="ignore"):
        # NaN on only one side and different infinities are treated as an infinite difference
        apart = np.nan_to_num(np.abs(wide_a - wide_b), nan=math.inf)
    largest = float(apart[differ].max())
    finite = np.abs(wide_a[np.isfinite(wide_a)])
    scale = float(finite.max()) if finite.size else 0.0
    relative = largest / scale if scale else math.inf
    return Difference(name, largest, relative, int(differ.sum()), a.size)


def differences(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[Difference]:
    """Compare arrays by name: first those in `a`, in its order, then those that are only in `b`."""
    here, there = dict(a), dict(b)
    return [difference(name, here.get(name), there.get(name)) for name in here | there]


def difference_table(found: list[Difference], everything: bool = False) -> str:
    """Return a table of the differences; the last line counts the arrays that differ."""
    rows: list[tuple[str, ...]]
    rows = [("name", "largest difference", "relative", "elements that differ")]
    for d in found:
        if d.why:
            rows.append((shown(d.name, 80), d.why, "", ""))
        elif everything or not d.same:
            cells = (f"{d.largest:.3g}", f"{d.relative:.2g}", f"{d.changed} of {d.size}")
            rows.append((shown(d.name, 80), *cells))
    n = sum(not d.same for d in found)
    text = _text(rows) if len(rows) > 1 else ""
    return f"{text}{n} of {len(found)} arrays differ\n"
