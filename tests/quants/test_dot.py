"""Integer products of quantised rows with int8 blocks: exact integers, and llama.cpp's own result.

With all scales 1 a product is a whole number, so float32 must give it exactly.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.kernels.jit import kernel
from nbllama.ops.linear.int8_rows import Int8Rows, int8_product_ref, int8_rows, int8_rows_ref
from nbllama.ops.linear.matmul import Weight
from nbllama.quants import QUANTS, as_readonly, decode
from nbllama.quants.dot import SUMMED, dot_blocks, find_dot, int8_block
from tests import oracle
from tests.quants.blocks import random_blocks
from tests.quants.oldest_cpu import ON_X86_64, run_on_oldest_x86_64

DOT_TYPES = [i for i in QUANTS if int8_block(i)]
NAMES = [QUANTS[i].name for i in DOT_TYPES]
each_type = pytest.mark.parametrize("type_id", DOT_TYPES, ids=NAMES)


def with_scales_of_one(type_id: int, raw: np.ndarray) -> np.ndarray:
    """The blocks with every scale 1; for NVFP4, the scale is half of the value of its byte."""
    t = QUANTS[type_id]
    blocks = raw.reshape(-1, t.type_size).copy()
    for at in t.scales:
        blocks[:, at : at + 2] = np.array([1.0], "<f2").view(np.uint8)
    if t.name == "NVFP4":
        blocks[:, :4] = 0x40
    return as_readonly(blocks.reshape(-1))


def whole_rows(q: np.ndarray, block: int) -> Int8Rows:
    """Numbers q `[N, K]` with every scale 1."""
    d = np.ones((len(q), q.shape[1] // block), np.float32)
    if block == 32:
        sums = q.reshape(len(q), -1, 32).sum(axis=2, dtype=np.int32).astype(np.float32)
    else:
        sums = q.reshape(len(q), -1, SUMMED).sum(axis=2, dtype=np.int16)
    return Int8Rows(q, d, sums)


def bytes_of_block(type_id: int) -> int:
    """Of W, for one block of x."""
    t = QUANTS[type_id]
    return t.type_size * int8_block(type_id) // t.block_size


@cache
def _product_of(type_id: int) -> Any:
    size = bytes_of_block(type_id)

    @kernel()
    def run(raw, blocks, q, d, sums, y):
        for t in range(y.shape[0]):
            for n in range(y.shape[1]):
                y[t, n] = dot_blocks(
                    type_id, raw, n * blocks * size, blocks, q, d, sums, t * blocks
                )

    return run


def products(type_id: int, raw: np.ndarray, rows: Int8Rows, n_out: int) -> np.ndarray:
    y = np.empty((len(rows.q), n_out), np.float32)
    flat = [x.reshape(-1) for x in rows]
    blocks = rows.q.shape[1] // int8_block(type_id)
    _product_of(type_id)(raw, blocks, *flat, y)
    return y


def check_whole_numbers(type_id: int) -> None:
    block, n_out, n_in = int8_block(type_id), 37, 512
    n_blocks = n_out * n_in // QUANTS[type_id].block_size
    raw = with_scales_of_one(type_id, random_blocks(type_id, n_blocks))
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
        got = products(type_id, raw, whole_rows(q, int8_block(type_id)), 3)
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
    want = int8_product_ref(rows, decoded)
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


def test_arrays_that_do_not_fit_are_refused() -> None:
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
@ON_X86_64
def test_same_integers_on_the_oldest_x86_64(tmp_path: Path) -> None:
    printed = run_on_oldest_x86_64(PROGRAM, tmp_path)
    assert printed == [str(len(DOT_TYPES))]
