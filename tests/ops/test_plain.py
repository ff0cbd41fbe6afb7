"""The plain loops compute the same as the vector code, for each routine and for whole ops."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit

from nbllama.kernels import plain, simd
from nbllama.kernels.jit import PLAIN
from nbllama.kernels.lanes import PANEL, ROWS, VL
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(PLAIN, reason="both are the plain loops")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def call(routine: Any) -> Any:
    """The routine as a function that can be called from Python."""

    @njit
    def run(*args):
        return routine(*args)

    return run


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("swapped", [False, True], ids=["rows", "columns"])
def test_micro_kernel(swapped: bool, fresh: bool) -> None:
    k = 37
    a, b = normal(1, 9, 60), normal(2, 50 * PANEL)
    c = normal(3, 11, PANEL + 5)
    row, step = (1, 7) if swapped else (60, 1)
    got, wanted = c.copy(), c.copy()
    for routine, out in ((simd.fma_tile, got), (plain.fma_tile, wanted)):
        call(routine)(a, 3, row, step, b, 5, PANEL, k, out, 2, PANEL + 5, fresh)
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    flat = a.reshape(-1)
    exact = np.array([[flat[3 + i * row + j * step] for j in range(k)] for i in range(ROWS)])
    product = exact.astype(np.float64) @ b[5 : 5 + k * PANEL].reshape(k, PANEL)
    before = 0 if fresh else c.reshape(-1)
    where = 2 + np.arange(ROWS)[:, None] * (PANEL + 5) + np.arange(PANEL)
    start = 0 if fresh else before[where]  # type: ignore[index]
    np.testing.assert_allclose(got.reshape(-1)[where], product + start, atol=2e-5)
    untouched = np.ones(c.size, bool)
    untouched[where] = False
    np.testing.assert_array_equal(got.reshape(-1)[untouched], c.reshape(-1)[untouched])


@pytest.mark.parametrize("name", ["transpose_tile", "transpose_add_tile"])
def test_transposes(name: str) -> None:
    x, y = normal(1, VL + 2, VL + 3), normal(2, VL + 4, VL + 1)
    got, wanted = y.copy(), y.copy()
    call(getattr(simd, name))(x, 5, VL + 3, got, 1, VL + 1)
    call(getattr(plain, name))(x, 5, VL + 3, wanted, 1, VL + 1)
    np.testing.assert_array_equal(got, wanted)
    assert (got != y).sum() >= VL * VL - 1


def test_largest_of_a_row_passes_over_nan() -> None:
    row = normal(4, 100)
    row[[7, 50]] = np.nan
    for routine in (simd.row_max, plain.row_max):
        for start, n in ((0, 100), (3, 1), (5, 2 * VL), (11, 83)):
            assert call(routine)(row, start, n) == np.nanmax(row[start : start + n])


def test_exponential() -> None:
    x = np.linspace(-87, 88, 10001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    for routine in (simd.exp_f32, plain.exp_f32):
        f = call(routine)
        got = np.array([f(v) for v in x])
        assert (np.abs(got / exact - 1)).max() < 2.7e-7
        assert f(np.float32(-88)) == 0 and np.isnan(f(np.float32(np.nan)))
        assert np.isfinite(f(np.float32(1000)))


PROGRAM = """
import sys
import numpy as np
from nbllama.kernels import lanes
from nbllama.ops import OPS
from tests.ops.test_registry_sweep import sample, wide
from tests.differences import relative

for op in OPS:
    if op.name in ("linear with LoRA", "attention", "attention with a window", "swiglu",
                   "attention with a soft-cap", "cross_entropy", "rms_norm"):
        dy, inputs = sample(op, "odd", np.float32)
        worst = relative(op.forward(**inputs), op.forward_ref(**wide(inputs)))
        got, wanted = op.grad(dy, **inputs), op.grad_ref(dy.astype(np.float64), **wide(inputs))
        for name in wanted:
            worst = max(worst, relative(got[name], wanted[name]))
        assert worst <= op.tolerance, (op.name, worst)
        print(op.name)
print("VL", lanes.VL)
"""

ON_X86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 baseline"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"NBLLAMA_KERNELS": "plain"},
        pytest.param({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, marks=ON_X86),
    ],
    ids=["plain", "generic"],
)
def test_ops_elsewhere(tmp_path: Path, environment: dict[str, str]) -> None:
    """Matmul, attention, loss and norms, forward and gradient, against the float64 references."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env |= {"NBLLAMA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8, lines
    if "NUMBA_CPU_NAME" in environment:
        assert lines[-1] == "VL 4"
