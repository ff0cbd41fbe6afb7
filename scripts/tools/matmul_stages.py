"""One product, Y = X Wᵀ with W in Q4_0, in the stages of docs/matmul.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from numba import njit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_parts.kernels import weight  # noqa: E402

from nbllama.kernels import plain, simd  # noqa: E402
from nbllama.kernels.lanes import PANEL, ROWS  # noqa: E402
from nbllama.kernels.own_cores import own_cores  # noqa: E402
from nbllama.ops.linear.matmul import matmul  # noqa: E402
from nbllama.ops.linear.panels import pack, panel_floats  # noqa: E402
from nbllama.quants import DECODERS, QUANTS, decode  # noqa: E402

N, K, N_OUT = 512, 576, 1536
W = weight("Q4_0", K, N_OUT)
DECODE, BLOCK, ROW_BYTES = DECODERS[W.type_id], QUANTS[W.type_id].block_size, W.row_bytes
TILE = 96


@njit(error_model="numpy")
def plain_loop(x, raw, y, row):  # type: ignore[no-untyped-def]
    """Decode every number of W for every token."""
    for t in range(N):
        for n in range(N_OUT):
            DECODE(raw, n * ROW_BYTES, K // BLOCK, row, 0)
            total = np.float32(0.0)
            for k in range(K):
                total += x[t, k] * row[k]
            y[t, n] = total


@njit(error_model="numpy")
def decode_once(x, raw, y, row):  # type: ignore[no-untyped-def]
    for n in range(N_OUT):
        DECODE(raw, n * ROW_BYTES, K // BLOCK, row, 0)
        for t in range(N):
            total = np.float32(0.0)
            for k in range(K):
                total += x[t, k] * row[k]
            y[t, n] = total


@njit(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def vectorised_sum(x, raw, y, row):  # type: ignore[no-untyped-def]
    """Allow LLVM to reorder the sum over k and to vectorise it."""
    for n in range(N_OUT):
        DECODE(raw, n * ROW_BYTES, K // BLOCK, row, 0)
        for t in range(N):
            total = np.float32(0.0)
            for k in range(K):
                total += x[t, k] * row[k]
            y[t, n] = total


def tiled(fma_tile) -> Callable[..., None]:  # type: ignore[no-untyped-def]
    """Use panels, a tile of W decoded into the cache, and the micro-kernel."""

    @njit(error_model="numpy")
    def run(xp, raw, y, w, c):  # type: ignore[no-untyped-def]
        for n0 in range(0, N_OUT, TILE):
            for i in range(TILE):
                DECODE(raw, (n0 + i) * ROW_BYTES, K // BLOCK, w, i * (K + 16))
            for p in range(xp.shape[0]):
                for i in range(0, TILE, ROWS):
                    fma_tile(
                        w, i * (K + 16), K + 16, 1, xp, p * K * PANEL, PANEL, K, c, 0, PANEL, True
                    )
                    for t in range(PANEL):
                        for r in range(ROWS):
                            y[p * PANEL + t, n0 + i + r] = c[r * PANEL + t]

    return run


def best(f: Callable[[], object], repeats: int) -> float:
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, K)).astype(np.float32)
    y, row = np.empty((N, N_OUT), np.float32), np.empty(K, np.float32)
    w, c = np.empty(TILE * (K + 16), np.float32), np.empty(ROWS * PANEL, np.float32)
    panels = np.empty(panel_floats(N, K), np.float32)
    exact = x @ decode(W.type_id, W.raw, N_OUT * K).reshape(N_OUT, K).T
    micro_plain, micro = tiled(plain.fma_tile), tiled(simd.fma_tile)
    most = numba.get_num_threads()
    stages: list[tuple[str, int, Callable[[], object], int]] = [
        ("plain loop", 1, lambda: plain_loop(x, W.raw, y, row), 1),
        ("decode once", 1, lambda: decode_once(x, W.raw, y, row), 3),
        ("vectorised sum", 1, lambda: vectorised_sum(x, W.raw, y, row), 5),
        ("panels, micro-kernel as plain loops", 1,
         lambda: micro_plain(pack(x, panels), W.raw, y, w, c), 3),
        ("panels, micro-kernel as intrinsic", 1,
         lambda: micro(pack(x, panels), W.raw, y, w, c), 9),
        ("the package: blocks of k, transposed stores", 1,
         lambda: matmul(W, pack(x, panels), y), 15),
        ("the same", most, lambda: matmul(W, pack(x, panels), y), 15),
    ]  # fmt: skip
    print("| stage | threads | GF/s | speed-up |\n| --- | --- | --- | --- |")
    before = 0.0
    for name, threads, f, repeats in stages:
        numba.set_num_threads(threads)
        y[:] = 0
        with own_cores():
            rate = 2 * N * K * N_OUT / best(f, repeats) / 1e9
        if not np.allclose(y, exact, atol=1e-4 * np.abs(exact).max()):
            sys.exit(f"{name}: wrong numbers")
        times = f"{rate / before:.1f}" if before else ""
        print(f"| {name} | {threads} | {rate:.1f} | {times} |", flush=True)
        before = rate


if __name__ == "__main__":
    main()
