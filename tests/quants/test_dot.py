"""Integer products of quantised rows with int8 blocks: exact integers, and llama.cpp's own result.

With all scales 1 a product is a whole number, so float32 must give it exactly.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from nbllama.ops.int8_rows import Int8Rows, int8_rows, int8_rows_ref
from nbllama.ops.matmul import Weight
from nbllama.ops.matvec_int8 import matvec_int8, matvec_int8_ref
from nbllama.quants import QUANTS, as_readonly, decode
from nbllama.quants.dot import SUMMED, find_dot, int8_block
from tests import oracle
from tests.quants.blocks import random_blocks

DOT_TYPES = [i for i in QUANTS if int8_block(i)]
NAMES = [QUANTS[i].name for i in DOT_TYPES]
each_type = pytest.mark.parametrize("type_id", DOT_TYPES, ids=NAMES)


def with_scales_of_one(type_id: int, raw: np.ndarray) -> np.ndarray:
    """The blocks with every half set to 1.0."""
    t = QUANTS[type_id]
    blocks = raw.reshape(-1, t.type_size).copy()
    for at in t.scales:
        blocks[:, at : at + 2] = np.array([1.0], "<f2").view(np.uint8)
    return as_readonly(blocks.reshape(-1))


def whole_rows(q: np.ndarray, block: int) -> Int8Rows:
    """Numbers q `[N, K]` with every scale 1."""
    d = np.ones((len(q), q.shape[1] // block), np.float32)
    if block == 32:
        sums = q.reshape(len(q), -1, 32).sum(axis=2, dtype=np.int32).astype(np.float32)
    else:
        sums = q.reshape(len(q), -1, SUMMED).sum(axis=2, dtype=np.int16)
    return Int8Rows(q, d, sums)


def products(type_id: int, raw: np.ndarray, rows: Int8Rows, n_out: int) -> np.ndarray:
    y = np.empty((len(rows.q), n_out), np.float32)
    matvec_int8([Weight("w", type_id, raw, (n_out, rows.q.shape[1]))], rows, [y])
    return y


def check_whole_numbers(type_id: int) -> None:
    block, n_out, n_in = int8_block(type_id), 37, 512
    raw = with_scales_of_one(type_id, random_blocks(type_id, n_out * n_in // block))
    q = np.random.default_rng(1).integers(-127, 128, (3, n_in)).astype(np.int8)
    w = decode(type_id, raw, n_out * n_in).reshape(n_out, n_in).astype(np.int64)
    got = products(type_id, raw, whole_rows(q, block), n_out)
    np.testing.assert_array_equal(got, q.astype(np.int64) @ w.T)


@each_type
def test_integers_are_exact(type_id: int) -> None:
    check_whole_numbers(type_id)


@each_type
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_the_largest_codes_do_not_overflow(type_id: int, byte: int) -> None:
    t = QUANTS[type_id]
    raw = with_scales_of_one(type_id, np.full(3 * t.type_size, byte, np.uint8))
    w = decode(type_id, raw, 3 * t.block_size).reshape(3, -1).astype(np.float64)
    for sign in (1, -1):
        q = np.full((1, t.block_size), 127 * sign, np.int8)
        q[0, 1::2] = 127
        want = q.astype(np.float64) @ w.T
        got = products(type_id, raw, whole_rows(q, t.block_size), 3)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 * np.abs(w).max() * 127 * 32)


def weight(type_id: int, n_out: int, n_in: int, seed: int = 0) -> Weight:
    values = np.random.default_rng([seed, type_id]).standard_normal((n_out, n_in))
    data = oracle.quantize(type_id, (values / np.sqrt(n_in)).astype(np.float32))
    raw = as_readonly(np.frombuffer(data, np.uint8))
    return Weight(f"w{seed}", type_id, raw, (n_out, n_in))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@each_type
def test_result_is_that_of_the_reference_and_of_llama_cpp(type_id: int) -> None:
    w, x = weight(type_id, 40, 768), normal(2, 768)
    rows = int8_rows(x, int8_block(type_id))
    got = products(type_id, w.raw, rows, 40)
    decoded = decode(type_id, w.raw, 40 * 768).reshape(40, 768)
    want = matvec_int8_ref(rows, decoded)
    largest = np.abs(want).max()
    assert np.abs(got - want).max() < 2e-6 * largest
    theirs = oracle.ggml("ggml_mul_mat", oracle.Raw(type_id, w.raw.tobytes(), w.shape), x)
    # ggml keeps d, and d sum q, in half precision
    near = 3e-3 if QUANTS[type_id].name in ("Q4_1", "Q5_1") else 1e-3
    assert np.abs(got - theirs).max() < near * largest
    assert np.abs(got - x @ decoded.T).max() > 1.5e-3 * largest


@pytest.mark.parametrize("block", [32, 256])
def test_rows_are_those_of_the_reference(block: int) -> None:
    x = normal(3, 768) * np.float32(10.0) ** np.arange(-30, 30, 20)[:, None].astype(np.float32)
    x[1, 256:512] = 0
    x[2, 7] = 1e-40
    got, want = int8_rows(x, block), int8_rows_ref(x, block)
    np.testing.assert_array_equal(got.q, want.q)
    np.testing.assert_array_equal(got.d, want.d)
    np.testing.assert_array_equal(got.sums, want.sums)
    assert np.abs(got.q).max() == 127
    halves = np.zeros((1, block), np.float32)
    halves[0, :5] = [127, 0.5, 1.5, 2.5, -0.5]
    assert int8_rows(halves, block).q[0, :5].tolist() == [127, 0, 2, 2, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_what_is_not_finite_reaches_every_output(name: str, wrong: float) -> None:
    type_id = oracle.QUANT_TYPES[name]
    x = normal(2, 512)
    x[1, 300] = wrong
    rows = int8_rows(x, int8_block(type_id))
    y = products(type_id, weight(type_id, 9, 512).raw, rows, 9)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_weights_together_are_weights_alone_at_any_number_of_threads(name: str) -> None:
    type_id = oracle.QUANT_TYPES[name]
    ws = [weight(type_id, n, 512, n) for n in (70, 1, 45)]
    x = int8_rows(normal(2, 512), int8_block(type_id))
    alone = [products(type_id, w.raw, x, w.shape[0]) for w in ws]
    before = numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            ys = [np.full((2, w.shape[0]), 7, np.float32) for w in ws]
            matvec_int8(ws, x, ys)
            for y, want in zip(ys, alone, strict=True):
                np.testing.assert_array_equal(y, want)
            matvec_int8(ws, x, ys, add=True)
            np.testing.assert_array_equal(ys[1], alone[1] + alone[1])
    finally:
        numba.set_num_threads(before)


def test_arrays_that_do_not_fit_are_refused() -> None:
    w = weight(oracle.QUANT_TYPES["Q4_0"], 8, 64)
    x, y = int8_rows(normal(1, 64), 32), np.empty((1, 8), np.float32)
    k = weight(oracle.QUANT_TYPES["Q4_K"], 8, 256)
    wrong: list[tuple[Any, Any, Any]] = [
        ([w, k], x, [y, y]),
        ([w] * 4, x, [y] * 4),
        ([w], x, [y, y]),
        ([w], x, [y[:, :7]]),
        ([w], x, [y.astype(np.float64)]),
        ([w._replace(raw=w.raw[:-1])], x, [y]),
        ([w._replace(shape=(8, 32))], x, [y]),
        ([w._replace(type_id=0)], x, [y]),
        ([w], x._replace(q=x.q.astype(np.int16)), [y]),
        ([w], x._replace(d=x.d[:, :1]), [y]),
        ([w], x._replace(sums=x.sums.astype(np.int16)), [y]),
        ([k], int8_rows(normal(1, 256), 32), [y]),
    ]
    for ws, rows, ys in wrong:
        with pytest.raises(ValueError):
            matvec_int8(ws, rows, ys)
    for bad, block in ((normal(1, 33), 32), (normal(1, 64), 64), (normal(64), 32)):
        with pytest.raises(ValueError):
            int8_rows(bad, block)
    with pytest.raises(KeyError):
        find_dot(0)


PROGRAM = """
import numba
from tests.quants.test_dot import DOT_TYPES, check_whole_numbers
assert numba.config.CPU_NAME == "generic"
for type_id in DOT_TYPES:
    check_whole_numbers(type_id)
print(len(DOT_TYPES))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names an x86 baseline")
def test_same_integers_on_the_oldest_x86_64(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env |= {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NBLLAMA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(DOT_TYPES))]
