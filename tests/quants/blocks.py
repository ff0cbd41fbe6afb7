"""Blocks for the decoder tests: random bytes with finite scales, and the numpy reference."""

from __future__ import annotations

import gguf
import numpy as np
from gguf.quants import dequantize

from nbllama.quants import QUANTS, as_readonly

TYPE_IDS = sorted(QUANTS)
BLOCK_TYPE_IDS = [i for i in TYPE_IDS if QUANTS[i].block_size > 1]

# Relative L2 error of normally distributed weights (TQ: ternary ones) after llama.cpp's quantiser.
ERRORS = {
    "F32": 0,
    "F16": 0.0002,
    "BF16": 0.0016,
    "Q4_0": 0.087,
    "Q4_1": 0.078,
    "Q5_0": 0.043,
    "Q5_1": 0.038,
    "Q8_0": 0.0054,
    "Q2_K": 0.30,
    "Q3_K": 0.15,
    "Q4_K": 0.071,
    "Q5_K": 0.036,
    "Q6_K": 0.018,
    "IQ1_S": 0.49,
    "IQ1_M": 0.61,
    "IQ2_XXS": 0.34,
    "IQ2_XS": 0.30,
    "IQ2_S": 0.27,
    "IQ3_XXS": 0.21,
    "IQ3_S": 0.16,
    "IQ4_NL": 0.077,
    "IQ4_XS": 0.078,
    "TQ1_0": 0.0002,
    "TQ2_0": 0.0002,
    "MXFP4": 0.116,
    "NVFP4": 0.1,
    "Q1_0": 0.61,
}


def type_name(type_id: int) -> str:
    return QUANTS[type_id].name


def random_blocks(type_id: int, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Read-only bytes of `n_blocks` blocks: every bit random except for scales, which are finite.

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
        _set_scales(raw, offset, scales)
    return as_readonly(raw.reshape(-1))


def even_blocks(type_id: int, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Read-only bytes of `n_blocks` blocks with random codes and scales of like size, 1/200 to
    1/100 and of both signs, so that no block outweighs the others.
    """
    t = QUANTS[type_id]
    rng = np.random.default_rng([seed, type_id, 1])
    if t.name in ("F32", "F16", "BF16"):
        numbers = (0.02 * rng.standard_normal(n_blocks)).astype("<f4")
        if t.name == "F16":
            return as_readonly(numbers.astype("<f2").view(np.uint8))
        bytes_ = numbers.view(np.uint8).reshape(n_blocks, 4)
        return as_readonly(np.ascontiguousarray(bytes_[:, 4 - t.type_size :]).reshape(-1))
    raw = np.array(random_blocks(type_id, n_blocks, seed)).reshape(n_blocks, t.type_size)
    if t.name == "MXFP4":
        raw[:, 0] = rng.integers(119, 122, n_blocks)
    if t.name == "NVFP4":
        raw[:, :4] = rng.integers(8, 16, (n_blocks, 4))
    for offset in t.scales or ((None,) if t.name == "IQ1_M" else ()):
        sizes = rng.uniform(0.005, 0.01, n_blocks) * rng.choice([-1, 1], n_blocks)
        _set_scales(raw, offset, sizes.astype("<f2"))
    return as_readonly(raw.reshape(-1))


def _set_scales(raw: np.ndarray, offset: int | None, scales: np.ndarray) -> None:
    """Halves [n] into blocks [n, type_size]; None: IQ1_M, which has the four nibbles of its scale
    on top of four u16.
    """
    if offset is not None:
        raw[:, offset : offset + 2] = scales.view(np.uint8).reshape(len(raw), 2)
        return
    fields = raw[:, 48:56].view("<u2")
    for k in range(4):
        nibble = (scales.view("<u2") >> (4 * k)) & 15
        fields[:, k] = (fields[:, k] & 0x0FFF) | (nibble << 12)


def reference(type_id: int, raw: np.ndarray) -> np.ndarray:
    """gguf-py's decoding of whole blocks, float32; Q1_0, which it does not have, in numpy."""
    if QUANTS[type_id].name == "Q1_0":
        blocks = np.array(raw).reshape(-1, 18)
        d = blocks[:, :2].copy().view("<f2").astype(np.float32)
        bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
        return np.where(bits, d, -d).reshape(-1)
    return dequantize(np.array(raw), gguf.GGMLQuantizationType(type_id))


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Bit-equal float32 arrays: 0.0 and -0.0 differ, and so does the last bit of anything."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    wrong = np.flatnonzero(got.view(np.int32) != want.view(np.int32))
    if wrong.size:
        i = wrong[0]
        raise AssertionError(f"{wrong.size} differ, first [{i}]: {got[i]!r}, not {want[i]!r}")
