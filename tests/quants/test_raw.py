"""Field loads: all 65536 halves and bfloat16, signs and widths of integers."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.kernels.jit import kernel
from nbllama.quants import as_readonly
from nbllama.quants._raw import bf16, f16, f16_by_integers, half_of_bits, i8, u8, u16, u32


@kernel()
def _f16(raw, out):
    for i in range(out.shape[0]):
        out[i] = f16(raw, 2 * i)


@kernel()
def _f16_by_integers(raw, out):
    for i in range(out.shape[0]):
        out[i] = f16_by_integers(raw, 2 * i)


@kernel()
def _half_of_bits(raw, out):
    for i in range(out.shape[0]):
        out[i] = half_of_bits(u16(raw, 2 * i))


@kernel()
def _bf16(raw, out):
    for i in range(out.shape[0]):
        out[i] = bf16(raw, 2 * i)


@kernel()
def _integers(raw, i):
    return u8(raw, i), i8(raw, i), u16(raw, i), u32(raw, i)


ALL = np.arange(65536, dtype="<u2")


@pytest.mark.parametrize("read", [_f16, _f16_by_integers, _half_of_bits])
def test_every_half(read) -> None:
    got = np.empty(65536, np.float32)
    read(as_readonly(ALL.view(np.uint8)), got)
    want = ALL.view("<f2").astype(np.float32)
    nan = np.isnan(want)
    assert nan.sum() == 2046
    assert np.isnan(got[nan]).all()
    # The bits of a NaN are free: hardware sets its quiet bit.
    assert (got[~nan].view(np.int32) == want[~nan].view(np.int32)).all()


def test_every_bfloat16() -> None:
    got = np.empty(65536, np.float32)
    _bf16(as_readonly(ALL.view(np.uint8)), got)
    assert (got.view(np.uint32) == ALL.astype(np.uint32) << 16).all()


def test_integers() -> None:
    raw = as_readonly(np.array([1, 0xFE, 0x80, 0x7F, 0xFF, 0x80], np.uint8))
    assert _integers(raw, 1) == (0xFE, -2, 0x80FE, 0xFF7F80FE)
    assert _integers(raw, 2) == (0x80, -128, 0x7F80, 0x80FF7F80)


def test_only_bytes_are_read() -> None:
    with pytest.raises(Exception, match="raw must be a uint8 array"):
        _f16(np.zeros(4, np.float32), np.zeros(1, np.float32))
