"""Grids and codes of every type against its decoder."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.export.grids import grid_of, has_grid, with_codes
from nbllama.export.rewrite import IDS
from nbllama.quants import decode
from nbllama.quants.encode import quantise

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", TYPES)
def test_any_codes_decode_to_the_values_of_the_grid(kind: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((3, 512)).astype(np.float32)
    raw = quantise(IDS[kind], rows)
    grid = grid_of(IDS[kind], raw, rows.shape)
    every = np.resize(np.arange(grid.first, grid.last + 1), rows.size)
    codes = rng.permutation(every).reshape(rows.shape).astype(np.int8)
    made = decode(IDS[kind], with_codes(IDS[kind], raw, codes), rows.size).reshape(rows.shape)
    np.testing.assert_array_equal(made, grid.values(codes))


@pytest.mark.parametrize("kind", TYPES)
def test_what_the_quantiser_wrote_is_on_the_grid(kind: str) -> None:
    rows = np.random.default_rng(2).standard_normal((2, 256)).astype(np.float32)
    raw = quantise(IDS[kind], rows)
    grid = grid_of(IDS[kind], raw, rows.shape)
    made = decode(IDS[kind], raw, rows.size).reshape((*grid.scale.shape, grid.group))
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((made + grid.low[:, :, None]) / grid.scale[:, :, None])
    codes = np.nan_to_num(codes).reshape(rows.shape).astype(np.int8)
    np.testing.assert_array_equal(with_codes(IDS[kind], raw, codes), raw)


def test_other_types_and_sizes_are_refused() -> None:
    assert not has_grid(IDS["IQ4_NL"])
    with pytest.raises(ValueError, match="IQ4_NL has no grid"):
        grid_of(IDS["IQ4_NL"], np.zeros(18, np.uint8), (1, 32))
    with pytest.raises(ValueError, match="18 bytes, expected 36"):
        grid_of(IDS["Q4_0"], np.zeros(18, np.uint8), (1, 64))
