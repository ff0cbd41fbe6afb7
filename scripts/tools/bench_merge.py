"""The time of a calibrated merge of a 7B model, estimated from one matrix of each shape.

Times are processor times of all threads together, so that other programs on the machine do not
count, divided by the number of threads of the step. Rows share nothing, so `ROWS` rows of a matrix
are measured and the total is extrapolated. The factorisation of the widest input is extrapolated
from the narrower one by the cube of the width; `--whole` measures it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbllama.export.feedback import Factor, factorise, round_matrix
from nbllama.export.grids import grid_of, with_codes
from nbllama.export.inputs import add_second_moments
from nbllama.export.rewrite import IDS
from nbllama.kernels.cores import use_threads
from nbllama.ops.linear.matmul import Weight, matmul
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.quants import as_readonly
from nbllama.quants.encode import quantise

LAYERS, BATCH, ROWS = 32, 512, 512
NARROW = 4096
INPUTS = {NARROW: 3, 11008: 1}  # number of inputs per block, by width
MATRICES = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}
ATTENTION = 1.1  # time of the forward pass / time of its matrix products


def timed(threads: int, call: Callable[[], Any]) -> tuple[Any, float]:
    """Call, and measure the processor seconds per thread."""
    start = time.process_time()
    result = call()
    return result, (time.process_time() - start) / threads


def main(words: Sequence[str]) -> None:
    """Print the time of the steps and the total."""
    whole, words = "--whole" in words, [w for w in words if w != "--whole"]
    kind, tokens = (
        (words[0] if words else "Q4_K").upper(),
        int(words[1]) if len(words) > 1 else 8192,
    )
    threads = use_threads(None)
    rng = np.random.default_rng(0)
    small = rng.standard_normal((64, 512), dtype=np.float32)
    h = np.zeros((512, 512), np.float32)
    add_second_moments(small, h)  # compiles
    raw = quantise(IDS[kind], small)
    with_codes(
        IDS[kind],
        raw,
        round_matrix(small, grid_of(IDS[kind], raw, small.shape), factorise(h)).codes,
    )
    total, narrow, products = 0.0, 0.0, 0.0
    factors: dict[int, Factor] = {}
    for n, count in INPUTS.items():
        x = rng.standard_normal((BATCH, n), dtype=np.float32)
        h = np.zeros((n, n), np.float32)
        _, seconds = timed(threads, lambda x=x, h=h: add_second_moments(x, h))
        total += count * seconds * tokens / BATCH
        print(f"second moments of {BATCH} tokens, {n} wide: {seconds:.2f} s", flush=True)
        if n == NARROW or whole:
            factors[n], seconds = timed(1, lambda h=h: factorise(h))  # LAPACK on one thread
            narrow = seconds if n == NARROW else narrow
        else:
            seconds = narrow * (n / NARROW) ** 3
            noise = np.tril(rng.standard_normal((n, n), dtype=np.float32) / n, -1)
            factors[n] = Factor(np.arange(n), noise, np.ones(n))
        total += count * seconds
        print(f"factorised: {seconds:.1f} s", flush=True)
    for shape, count in MATRICES.items():
        part = shape[0] / ROWS
        w = rng.standard_normal((ROWS, shape[1]), dtype=np.float32)
        raw = quantise(IDS[kind], w)

        def one(w: np.ndarray = w, raw: np.ndarray = raw) -> None:
            codes = round_matrix(w, grid_of(IDS[kind], raw, w.shape), factors[w.shape[1]]).codes
            with_codes(IDS[kind], raw, codes)

        _, seconds = timed(threads, one)
        _, encoding = timed(threads, lambda w=w: quantise(IDS[kind], w))
        weight = Weight("merged", IDS[kind], as_readonly(raw), w.shape)
        panels = pack(
            rng.standard_normal((BATCH, shape[1]), dtype=np.float32),
            np.empty(panel_floats(BATCH, shape[1]), np.float32),
        )
        y = np.empty((BATCH, ROWS), np.float32)
        matmul(weight, panels, y)  # compiles
        _, product = timed(threads, lambda w=weight, x=panels, y=y: matmul(w, x, y))
        products += count * part * product
        seconds, encoding = part * seconds, part * encoding
        total += count * (2 * seconds + encoding)  # with the base's scales and with new ones
        print(f"{shape[0]} x {shape[1]} rounded: {seconds:.1f} s, new scales: {encoding:.1f} s")
    forward = ATTENTION * LAYERS * products * tokens / BATCH
    print(f"7B, {kind}, {tokens} tokens, {threads} threads: {LAYERS} blocks of {total:.0f} s,")
    minutes = (LAYERS * total + forward) / 60
    print(f"reading the sample about {forward / 60:.0f} min; in all {minutes:.0f} min")


if __name__ == "__main__":
    main(sys.argv[1:])
