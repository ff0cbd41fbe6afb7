"""Limits of plausible figures: a bench that measures the wrong thing must fail, not report it."""

from __future__ import annotations

import math
from typing import Any

from nbllama.kernels.cores import processors
from nbllama.kernels.lanes import host_vector_length

CLOCK = 6.5e9  # Hz; no processor is faster
UNITS = 2  # fused multiply-adds that a core starts per cycle, each two operations per lane
ZERO = frozenset({"compile_seconds"})  # zero if the kernels are cached
RATES = ("gflops", "forward_gflops", "gradient_gflops", "sgemm_gflops")


class Impossible(Exception):
    """A figure that is impossible."""


def peak_gflops() -> float:
    """Return an upper bound of the float32 GFLOP/s of this machine, with all its processors."""
    return processors() * UNITS * 2 * max(8, host_vector_length()) * CLOCK / 1e9


def check(part: str, row: dict[str, Any]) -> None:
    """Raise `Impossible` for a row with a figure that is not finite or not above zero, or with a
    throughput above the machine's peak.
    """
    for name, value in row.items():
        if isinstance(value, float):
            least = value >= 0 if name in ZERO else value > 0
            if not (math.isfinite(value) and least):
                raise Impossible(f"{part}: {name} is {value:g}, which is impossible: {row}")
    peak = peak_gflops()
    for name in RATES:
        if row.get(name, 0.0) > peak:
            raise Impossible(
                f"{part}: {name} is {row[name]:.4g}, and this machine's peak is below {peak:.4g}:"
                f" {row}"
            )
    if row.get("of_step", 0.0) > 100:
        raise Impossible(f"{part}: {row['of_step']:.4g} % of a step: {row}")
