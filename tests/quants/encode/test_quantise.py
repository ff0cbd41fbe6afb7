"""Quantisers against llama.cpp's `ggml_quantize_chunk`: errors, bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from nbllama.quants import decode, nbytes
from nbllama.quants.encode import QUANTISED, quantise
from tests import oracle

# Searches add up in another order than llama.cpp's, so sometimes the other of two nearly equal
# candidates wins; 1.001 was the largest ratio seen.
RATIO = 1.02
SIMPLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def rmse(type_id: int, raw: np.ndarray, rows: np.ndarray) -> float:
    difference = decode(type_id, raw, rows.size).astype(np.float64) - rows.reshape(-1)
    return float(np.sqrt(np.mean(difference**2)))


def compared(name: str, rows: np.ndarray, floor: float = 0) -> np.ndarray:
    """Our bytes, after the comparison of errors with llama.cpp's; below `floor` all are equal."""
    type_id = oracle.QUANT_TYPES[name]
    ours = quantise(type_id, rows)
    assert ours.dtype == np.uint8 and ours.shape == (nbytes(type_id, rows.size),)
    theirs = np.frombuffer(oracle.quantize(type_id, rows), np.uint8)
    limit = max(floor, RATIO * rmse(type_id, theirs.copy(), rows))
    error = rmse(type_id, ours, rows)
    assert np.isfinite(error) and error <= limit, f"{name}: {error} over {limit}"
    if name in SIMPLE:
        np.testing.assert_array_equal(ours, theirs)
    return ours


def random_rows(kind: str, shape: tuple[int, int] = (40, 512)) -> np.ndarray:
    rng = np.random.default_rng(5)
    made = {
        "normal": lambda: 0.02 * rng.standard_normal(shape),
        "heavy tails": lambda: 0.02 * rng.standard_t(2.5, shape),
        "all positive": lambda: rng.uniform(0.5, 1, shape),
        "all negative": lambda: -rng.uniform(0.01, 2, shape),
        "sparse": lambda: rng.standard_normal(shape) * (rng.random(shape) < 0.05),
        "magnitudes": lambda: rng.standard_normal(shape) * 10 ** rng.uniform(-6, 3, shape),
        "large": lambda: 1e4 * rng.standard_normal(shape),
        "small": lambda: 1e-4 * rng.standard_normal(shape),
        "halves": lambda: rng.integers(-7, 8, shape) / 2,
    }
    return made[kind]().astype(np.float32)


KINDS = (
    *("normal", "heavy tails", "all positive", "all negative", "sparse"),
    *("magnitudes", "large", "small", "halves"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUANTISED)
def test_error_against_llama_cpp(name: str, kind: str) -> None:
    compared(name, random_rows(kind))


@pytest.mark.parametrize("name", QUANTISED)
def test_real_rows(name: str, demo_model: Path) -> None:
    with open_gguf(demo_model) as f:
        for tensor, n in (("blk.7.ffn_down.weight", 1536), ("token_embd.weight", 2304)):
            info = f.tensors[tensor]
            raw = f.data(tensor)[: nbytes(info.type_id, 64 * n)]
            compared(name, decode(info.type_id, raw, 64 * n).reshape(64, n))


@pytest.mark.parametrize("name", QUANTISED)
def test_rows_of_one_value(name: str) -> None:
    """Zeros stay zeros; a constant comes back within the type's own rounding of its scale."""
    type_id = oracle.QUANT_TYPES[name]
    for value in (0.0, -0.0, 1e-30, 1.0, -1.0, 0.37, -250.0):
        rows = np.full((2, 256), value, np.float32)
        # all candidates are equal except for rounding, so the chosen one is random
        raw = compared(name, rows, floor=abs(value) * 2.0**-11)
        got = decode(type_id, raw, rows.size)
        # 2 % is more than a half's rounding (2^-11) and that of scales (1 of 63), less than a code
        np.testing.assert_allclose(got, rows.reshape(-1), rtol=0.02, atol=1e-12)


@pytest.mark.parametrize("name", QUANTISED)
def test_the_same_bytes_with_any_number_of_threads(name: str) -> None:
    import numba

    rows = random_rows("heavy tails", (70, 512))  # 2.2 chunks
    before, seen = numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        seen.append(quantise(oracle.QUANT_TYPES[name], rows))
    numba.set_num_threads(before)
    np.testing.assert_array_equal(seen[0], seen[1])
    # a row's bytes do not depend on the rows around it
    np.testing.assert_array_equal(seen[0][-len(seen[0]) // 70 :], quantise(
        oracle.QUANT_TYPES[name], rows[-1]
    ))  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(name: str, bad: float) -> None:
    rows = random_rows("normal", (2, 256))
    rows[1, 77] = bad
    with pytest.raises(ValueError, match="infinite or not a number"):
        quantise(oracle.QUANT_TYPES[name], rows)


@pytest.mark.parametrize("name", [n for n in QUANTISED if n not in ("F32", "BF16")])
def test_what_does_not_fit_is_refused(name: str) -> None:
    for value in (1e10, 3e38):
        with pytest.raises(ValueError, match=f"too large for {name}"):
            quantise(oracle.QUANT_TYPES[name], np.full((1, 256), value, np.float32))
    rows = np.full((1, 256), 65000.0, np.float32)
    assert rmse(oracle.QUANT_TYPES[name], quantise(oracle.QUANT_TYPES[name], rows), rows) < 1000


def test_wrong_arguments() -> None:
    rows = np.zeros((2, 256), np.float32)
    with pytest.raises(ValueError, match="do not fill whole Q4_K blocks"):
        quantise(oracle.QUANT_TYPES["Q4_K"], rows[:, :128])
    with pytest.raises(ValueError, match="do not fill whole Q4_0 blocks"):
        quantise(oracle.QUANT_TYPES["Q4_0"], rows[:, :31])
    for wrong in (rows.astype(np.float64), rows[None], rows[:0]):
        with pytest.raises(ValueError, match="must be float32"):
            quantise(oracle.QUANT_TYPES["Q4_0"], wrong)
    with pytest.raises(ValueError, match="IQ4_NL cannot be written"):
        quantise(oracle.QUANT_TYPES["IQ4_NL"], rows)
    with pytest.raises(GGUFError):
        quantise(9999, rows)
    # arrays that are not contiguous are copied
    wide = random_rows("normal", (4, 512))
    np.testing.assert_array_equal(
        quantise(oracle.QUANT_TYPES["Q4_K"], wide[::2, 256:]),
        quantise(oracle.QUANT_TYPES["Q4_K"], wide[::2, 256:].copy()),
    )
