"""Blocks for the decoder tests: random bytes with finite scales, and the numpy reference."""

from __future__ import annotations

import gguf
import numpy as np
from gguf.quants import dequantize

from nbllama.quants import QUANTS, as_readonly

TYPE_IDS = sorted(QUANTS)
BLOCK_TYPE_IDS = [i for i in TYPE_IDS if QUANTS[i].block_size > 1]


def type_name(type_id: int) -> str:
    return QUANTS[type_id].name


def random_blocks(type_id: int, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Read-only bytes of `n_blocks` blocks: every bit random but for scales, which are finite.

    Scales cover both signs, zero, subnormal halves and the largest half.
    """
    t = QUANTS[type_id]
    rng = np.random.default_rng([seed, type_id])
    if t.name in ("F32", "F16", "BF16"):
        numbers = rng.standard_normal(n_blocks) * 10.0 ** rng.integers(-7, 4, n_blocks)
        numbers = numbers.astype("<f4")
        if t.name == "F16":
            return as_readonly(numbers.astype("<f2").view(np.uint8))
        bytes_ = numbers.view(np.uint8).reshape(n_blocks, 4)
        return as_readonly(np.ascontiguousarray(bytes_[:, 4 - t.type_size :]).reshape(-1))
    raw = rng.integers(0, 256, (n_blocks, t.type_size), dtype=np.uint8)
    if t.name == "MXFP4":  # a scale is an exponent; 253 and up overflow with the largest code
        raw[:, 0] = rng.integers(0, 253, n_blocks)
        raw[: min(4, n_blocks), 0] = [0, 1, 2, 252][: min(4, n_blocks)]
    for offset in t.scales or ((None,) if t.name == "IQ1_M" else ()):
        scales = rng.standard_normal(n_blocks) * 10.0 ** rng.integers(-7, 2, n_blocks)
        scales = scales.astype("<f2")
        extremes = np.array([0.0, -0.0, 2.0**-24, -(2.0**-15), 65504.0, -65504.0], "<f2")
        scales[: min(6, n_blocks)] = extremes[: min(6, n_blocks)]
        if offset is None:  # IQ1_M has the four nibbles of its scale on top of four u16
            fields = raw[:, 48:56].view("<u2")
            for k in range(4):
                nibble = (scales.view("<u2") >> (4 * k)) & 15
                fields[:, k] = (fields[:, k] & 0x0FFF) | (nibble << 12)
        else:
            raw[:, offset : offset + 2] = scales.view(np.uint8).reshape(n_blocks, 2)
    return as_readonly(raw.reshape(-1))


def reference(type_id: int, raw: np.ndarray) -> np.ndarray:
    """gguf-py's decoding of whole blocks, float32."""
    return dequantize(np.array(raw), gguf.GGMLQuantizationType(type_id))


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Bit-equal float32 arrays: 0.0 and -0.0 differ, and so does the last bit of anything."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    wrong = np.flatnonzero(got.view(np.int32) != want.view(np.int32))
    if wrong.size:
        i = wrong[0]
        raise AssertionError(f"{wrong.size} differ, first [{i}]: {got[i]!r}, not {want[i]!r}")
