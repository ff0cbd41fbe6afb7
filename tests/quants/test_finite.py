"""`check_finite`: all kinds of infinities and NaN are found, at any place, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.errors import GGUFError
from nbllama.quants import QUANTS, check_finite, decode
from nbllama.quants.finite import first_special
from tests.quants.blocks import TYPE_IDS, random_blocks, type_name

SPECIAL_HALVES = [np.inf, -np.inf, np.nan, -np.nan]
SPECIAL_PATTERNS = [0x7C01, 0xFFFF]  # a signalling NaN and the largest pattern
MXFP4, NVFP4, IQ1_M = 39, 40, 29


def _damage(type_id: int, raw: np.ndarray, block: int, field: int, half: np.ndarray) -> None:
    """Write a half as scale number `field` of a block; plain formats get the number itself."""
    t = QUANTS[type_id]
    rows = raw.reshape(-1, t.type_size)
    if t.name in ("F32", "BF16"):
        upper = half.astype("<f4").view("<u2")[1::2]
        rows[block, t.type_size - 2 :] = upper.view(np.uint8)
    elif t.name == "MXFP4":
        rows[block, 0] = 255
    elif t.name == "IQ1_M":
        scales = rows[block, 48:].view("<u2")
        for k in range(4):
            scales[k] = (scales[k] & 0x0FFF) | (((half.view("<u2")[0] >> (4 * k)) & 15) << 12)
    else:
        at = t.scales[field] if t.scales else 0
        rows[block, at : at + 2] = half.view(np.uint8)


def _special_halves() -> np.ndarray:
    patterns = np.array(SPECIAL_PATTERNS, "<u2").view("<f2")
    return np.concatenate([np.array(SPECIAL_HALVES, "<f2"), patterns])


@pytest.mark.parametrize("type_id", TYPE_IDS, ids=type_name)
def test_finite_blocks_pass(type_id: int) -> None:
    # Scales include the largest half and subnormals.
    n = 2501 * QUANTS[type_id].block_size
    raw = random_blocks(type_id, 2501)
    assert np.isfinite(decode(type_id, raw, n)).all()
    assert first_special(type_id, raw, n) == -1
    check_finite(type_id, raw, n, "blk.0.attn_q.weight")
    check_finite(type_id, raw[:0], 0, "empty")


@pytest.mark.parametrize("type_id", [i for i in TYPE_IDS if i != NVFP4], ids=type_name)
@pytest.mark.parametrize("block", [0, 1, 1023, 2500])
def test_every_special_scale_is_found(type_id: int, block: int) -> None:
    t = QUANTS[type_id]
    n = 2501 * t.block_size
    clean = random_blocks(type_id, 2501)
    for field in range(max(1, len(t.scales))):
        for i in range(len(_special_halves())):
            raw = np.array(clean)
            _damage(type_id, raw, block, field, _special_halves()[i : i + 1])
            assert first_special(type_id, raw, n) == block
            if type_id != MXFP4:  # the value would have reached the loss
                assert not np.isfinite(decode(type_id, raw, n)).all()


def test_the_first_block_of_two_fields() -> None:
    raw = np.array(random_blocks(12, 30))
    _damage(12, raw, 20, 0, np.array([np.inf], "<f2"))
    _damage(12, raw, 7, 1, np.array([np.nan], "<f2"))
    assert first_special(12, raw, 30 * 256) == 7


def test_mxfp4_scales_that_overflow() -> None:
    raw = np.array(random_blocks(MXFP4, 1))
    raw[1:] = 0x77  # all codes are the largest one, 6
    for e in range(256):
        raw[0] = e
        found = first_special(MXFP4, raw, 32)
        overflows = not np.isfinite(decode(MXFP4, raw, 32)).all()
        assert found == (0 if e >= 253 else -1)
        assert overflows == (e >= 253)


def test_every_scale_of_nvfp4_is_a_number() -> None:
    raw = np.tile(np.arange(256, dtype=np.uint8), 4).reshape(256, 4)
    blocks = np.concatenate([raw, np.full((256, 32), 0x77, np.uint8)], axis=1).reshape(-1)
    assert np.isfinite(decode(NVFP4, blocks, 256 * 64)).all()
    assert first_special(NVFP4, blocks, 256 * 64) == -1


def test_message_names_tensor_type_and_block() -> None:
    raw = np.array(random_blocks(2, 30))
    _damage(2, raw, 17, 0, np.array([np.inf], "<f2"))
    with pytest.raises(GGUFError, match=r"blk\.3\.ffn_up\.weight \(Q4_0\): the scale of block 17"):
        check_finite(2, raw, 30 * 32, "blk.3.ffn_up.weight")
    numbers = np.array([0, 1, np.nan], "<f4").view(np.uint8)
    with pytest.raises(GGUFError, match=r"output_norm\.weight \(F32\): number 2"):
        check_finite(0, numbers, 3, "output_norm.weight")
    with pytest.raises(GGUFError, match=r"bad\\nname"):
        check_finite(0, numbers, 3, "bad\nname")
    with pytest.raises(GGUFError, match=r"^m\.gguf: tensor output_norm\.weight"):
        check_finite(0, numbers, 3, "output_norm.weight", path="m.gguf")


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="540 bytes, expected 558"):
        check_finite(2, random_blocks(2, 30), 31 * 32, "w")
