"""One block of each family decoded by hand, so that a layout can be checked on paper.

The half 1.0 is 0x3C00, bytes 00 3C; 0.5 is 00 38; 2.0 is 00 40; 0.25 is 00 34.
"""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.quants import QUANTS
from nbllama.quants.base import find_decoder

IDS = {t.name: t.id for t in QUANTS.values()}
HALF, ONE, TWO, QUARTER = [0x00, 0x38], [0x00, 0x3C], [0x00, 0x40], [0x00, 0x34]


@pytest.fixture(params=["vector", "plain"])
def decoded(request):
    """Function (type name, bytes of one block) -> float32 weights, with either set of kernels."""

    def run(name: str, block: list[int]) -> np.ndarray:
        t = QUANTS[IDS[name]]
        assert len(block) == t.type_size
        out = np.full(t.block_size, np.nan, np.float32)
        raw = np.array(block, np.uint8)
        raw.flags.writeable = False
        find_decoder(t.id, request.param)(raw, 0, 1, out, 0)
        return out

    return run


def test_floats(decoded) -> None:
    # -0.5 has the sign bit, exponent 126 and no mantissa: BF000000; its upper half is a bfloat16.
    # The half's exponent is 14 and its sign bit is bit 15: B800.
    assert decoded("F32", [0x00, 0x00, 0x00, 0xBF]) == -0.5
    assert decoded("BF16", [0x00, 0xBF]) == -0.5
    assert decoded("F16", [0x00, 0xB8]) == -0.5


def test_q4_0(decoded) -> None:
    # d = 0.5. Byte 0 is 0x9F: weight 0 has code 15 -> 0.5 * (15 - 8) = 3.5, weight 16 has code
    # 9 -> 0.5. All other bytes are 0x80: codes 0 -> -4 below 16, codes 8 -> 0 above.
    want = np.array([3.5] + [-4.0] * 15 + [0.5] + [0.0] * 15)
    assert (decoded("Q4_0", HALF + [0x9F] + [0x80] * 15) == want).all()


def test_q5_1(decoded) -> None:
    # d = 0.5, m = 2. qh = 0x00010002: the fifth bit is set for weights 1 and 16. Nibbles are 3
    # (low) and 1 (high): w = 0.5 * 3 + 2 = 3.5 and 2.5; with 16 more for the fifth bit 11.5, 10.5.
    want = np.array([3.5, 11.5] + [3.5] * 14 + [10.5] + [2.5] * 15)
    assert (decoded("Q5_1", HALF + TWO + [0x02, 0, 0x01, 0] + [0x13] * 16) == want).all()


def test_q8_0(decoded) -> None:
    # d = 2. Bytes 0x80 = -128, 0x7F = 127, then 1s.
    want = np.array([-256.0, 254.0] + [2.0] * 30)
    assert (decoded("Q8_0", TWO + [0x80, 0x7F] + [1] * 30) == want).all()


def test_q2_k(decoded) -> None:
    # d = 1, dmin = 0.5. Group g has scale g and minimum 2: w = g * q - 1.
    # Every byte of qs is 0b11_10_01_00: the four runs of 32 of each half have codes 0, 1, 2, 3.
    scales = [g | 2 << 4 for g in range(16)]
    got = decoded("Q2_K", scales + [0b11100100] * 64 + ONE + HALF)
    run = np.arange(256) // 32 % 4
    assert (got == (np.arange(256) // 16) * run - 1).all()


def test_q4_k(decoded) -> None:
    # d = 1, dmin = 2. Scales of groups 0..3 are 1, 2, 3, 63 and their minima 0, 0, 0, 5: plain in
    # bytes 0..3 and 4..7. Group 4 has scale 0b010101 = 21 and minimum 0b100011 = 35: low bits 5 and
    # 3 in byte 8 (0x35), high bits 01 on top of byte 0 and 10 on top of byte 4. Others are 0.
    scales = [1 | 0b01 << 6, 2, 3, 63, 0 | 0b10 << 6, 0, 0, 5, 0x35, 0, 0, 0]
    # All codes: 4 in even groups, 10 in odd ones.
    got = decoded("Q4_K", ONE + TWO + scales + [0xA4] * 128).reshape(8, 32)
    want = [1 * 4, 2 * 10, 3 * 4, 63 * 10 - 2 * 5, 21 * 4 - 2 * 35, 0, 0, 0]
    assert (got == np.array(want)[:, None]).all()


def test_q6_k(decoded) -> None:
    # d = 0.5, all scales -2: w = -(q - 32). ql = 0x21 everywhere, qh = 0b11_10_01_00. In each half,
    # runs 0 and 1 have low bits 1, runs 2 and 3 have 2; the two high bits are 0, 1, 2, 3.
    got = decoded("Q6_K", [0x21] * 128 + [0b11100100] * 64 + [0xFE] * 16 + HALF)
    codes = [1, 1 + 16, 2 + 32, 2 + 48] * 2
    assert (got.reshape(8, 32) == 32 - np.array(codes)[:, None]).all()


def test_iq2_xxs(decoded) -> None:
    # d = 4 (0x4400). Row 0 of the code book is eight times 8. The u32 of group 0 has scale 1 in its
    # top four bits: 4 * (0.5 + 1) * 0.25 * 8 = 12. Its lowest seven bits are 0b0000001: weight 0 is
    # negative, and so is weight 7, which makes their number even. Other groups: scale 0 -> 4.
    group_0 = [0, 0, 0, 0, 0x01, 0x00, 0x00, 0x10]
    got = decoded("IQ2_XXS", [0x00, 0x44] + group_0 + [0] * 56)
    want = np.full(256, 4.0)
    want[:32] = 12
    want[[0, 7]] = -12
    assert (got == want).all()


def test_iq1_s(decoded) -> None:
    # d = 1. Row 0 is eight times -1. Group 0: scale 3 -> 2 * 3 + 1 = 7, delta negative (bit 15):
    # 7 * (-1 - 0.125) = -7.875. Other groups: 1 * (-1 + 0.125) = -0.875.
    got = decoded("IQ1_S", ONE + [0] * 32 + [0x00, 0x80 | 3 << 4] + [0] * 14)
    assert (got[:32] == -7.875).all()
    assert (got[32:] == -0.875).all()


def test_iq4_nl(decoded) -> None:
    # d = 0.5. Code 0 is -127, code 8 is 1, code 15 is 113.
    got = decoded("IQ4_NL", HALF + [0x8F] + [0x00] * 15)
    assert (got == np.array([56.5] + [-63.5] * 15 + [0.5] + [-63.5] * 15)).all()


def test_tq1_0(decoded) -> None:
    # d = 2. Digits 2, 1, 0, 2, 1 (weights 1, 0, -1, 1, 0) are 2*81 + 27 + 0 + 2*3 + 1 = 196 of 243:
    # 196 * 256 / 243 = 206.5, rounded up 207. Taken apart again: 207 * 3 = 621 = 2 * 256 + 109, so
    # digit 2; 109 * 3 = 327: 1, rest 71; 213: 0; rest 213 * 3 = 639: 2, rest 127; 381: 1.
    # The last four bytes have four digits each: 2, 1, 0, 2 (and a fifth that is not used).
    got = decoded("TQ1_0", [207] * 52 + TWO)
    digits = np.array([2.0, 0.0, -2.0, 2.0, 0.0])
    want = np.concatenate([np.repeat(digits, 32), np.repeat(digits, 16), np.repeat(digits[:4], 4)])
    assert (got == want).all()


def test_tq2_0(decoded) -> None:
    # d = 0.25; every byte is 0b10_01_00_10: runs of 32 have codes 2, 0, 1, 2 in both halves.
    got = decoded("TQ2_0", [0b10010010] * 64 + QUARTER)
    assert (got.reshape(8, 32) == 0.25 * np.array([1, -1, 0, 1] * 2)[:, None]).all()


def test_mxfp4(decoded) -> None:
    # e = 129: scale 2^(129 - 127) = 4. Codes: 0b0111 is +6 -> 24; 0b1001 is -0.5 -> -2.
    got = decoded("MXFP4", [129] + [0x97] * 16)
    assert (got == np.array([24.0] * 16 + [-2.0] * 16)).all()


def test_nvfp4(decoded) -> None:
    # Scales, halved: 0x38 is 1 -> 1/2, 0x4C is 1.5 * 4 -> 3, 0x03 is 3/8 * 2^-6 -> 3/1024, and 0x7F
    # is 0. Codes: 0b0111 is +6, doubled 12; 0b1001 is -0.5, doubled -1.
    got = decoded("NVFP4", [0x38, 0x4C, 0x03, 0x7F] + [0x97] * 32).reshape(4, 2, 8)
    assert (got[:, 0] == np.array([6, 36, 36 / 1024, 0])[:, None]).all()
    assert (got[:, 1] == np.array([-0.5, -3, -3 / 1024, 0])[:, None]).all()


def test_q1_0(decoded) -> None:
    # d = 0.5; 0x05 sets weights 0 and 2 of each 8.
    got = decoded("Q1_0", HALF + [0x05] * 16).reshape(16, 8)
    assert (got == 0.5 * np.array([1, -1, 1, -1, -1, -1, -1, -1])).all()
