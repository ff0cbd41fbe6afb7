"""Timing of interleaved variants, and the throughput of sgemm at the same time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np

from nbllama.kernels.own_cores import own_cores

# OpenBLAS's threads poll for new work for a while after a product (bench.py: 2 ms), on the cores
# that the next variant needs.
SETTLE = 0.03  # seconds
QUICK = bool(os.environ.get("NBLLAMA_BENCH_QUICK"))


def bind_blas() -> None:
    """Bind each of OpenBLAS's threads to a core, as `own_cores` does, for a fair comparison."""
    if sys.platform != "linux":
        return
    here = threading.get_native_id()
    blas = sorted(int(t) for t in os.listdir("/proc/self/task") if int(t) != here)
    cores = sorted(os.sched_getaffinity(0))
    if len(blas) == len(cores) - 1:
        for thread, core in zip(blas, cores[1:], strict=True):
            os.sched_setaffinity(thread, {core})


bind_blas()  # now, while numpy has the only threads


def timed(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def interleaved(runs: Mapping[str, Callable[[], Any]], seconds: float) -> list[dict[str, float]]:
    """Run rounds of all variants, one after the other, for about `seconds`; at least three.

    In a round a variant first runs for `SETTLE`, so that the other variant's threads are idle
    (OpenBLAS and Numba have different threads), and then for 20 ms or twice. The shortest of these
    times counts.
    """
    once = {name: min(timed(f), timed(f)) for name, f in runs.items()}
    counts = {name: max(2, min(20, int(0.02 / t))) for name, t in once.items()}
    a_round = sum((counts[name] + 1) * t for name, t in once.items())
    rounds = []
    for _ in range(max(3, min(30, int(seconds / a_round)))):
        row = {}
        for name, f in runs.items():
            with own_cores():
                settled = time.perf_counter() + SETTLE
                f()
                while time.perf_counter() < settled:
                    f()
                row[name] = min(timed(f) for _ in range(counts[name]))
        rounds.append(row)
    return rounds


def ratio(rounds: list[dict[str, float]], over: str, under: str) -> float:
    """Return the median of the rounds' ratios: how many times as fast `under` is as `over`."""
    return median(r[over] / r[under] for r in rounds)


class Sgemm:
    """numpy's float32 matmul of 1024 x 576 by 576 x 1536, the reference for whole steps."""

    WORK = 2 * 1024 * 576 * 1536

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.x = rng.standard_normal((1024, 576)).astype(np.float32)
        self.w = rng.standard_normal((576, 1536)).astype(np.float32)
        self.y = np.empty((1024, 1536), np.float32)

    def rate(self) -> float:
        """Measure FLOP/s: the median of 40 products in a row, followed by a pause."""
        with own_cores():
            run = [timed(lambda: np.matmul(self.x, self.w, out=self.y)) for _ in range(40)]
        time.sleep(SETTLE)
        return self.WORK / median(run)
