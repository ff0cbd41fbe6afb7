"""Read the grids of quantised blocks (the possible values of a weight), and pack codes into blocks.

Every type supported here stores a weight as `scale * q - low` with an integer code q. `scale` and
`low` are shared by a group of 16 or 32 neighbouring weights. See `nbllama.quants.legacy` and
`nbllama.quants.kquants` for the layouts. The values are bit-identical to those of the decoders.

Plain numpy is fast enough here, because most of the time is spent on rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nbllama.quants import nbytes, quant_type

Scales = tuple[np.ndarray, np.ndarray | None]


class Grid(NamedTuple):
    """The possible values of the weights in a matrix `[R, n]`.

    `scale` and `low` are float32 `[R, n / group]`. Codes range from `first` to `last`.
    """

    scale: np.ndarray
    low: np.ndarray
    group: int
    first: int
    last: int

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Compute the weights (float32 `[R, n]`) for codes `[R, n]`."""
        q = codes.reshape(*self.scale.shape, self.group).astype(np.float32)
        made: np.ndarray = self.scale[:, :, None] * q - self.low[:, :, None]
        return made.reshape(codes.shape)


class _Kind(NamedTuple):
    """Functions that read and write the blocks of a type.

    `scales(blocks)` returns `scale` and `low` (None for types without an offset), each
    `[blocks, groups]`.
    `pack(blocks, codes)` writes codes, uint8 `[blocks, block_size]`, as offsets from `first`.
    """

    group: int
    first: int
    last: int
    scales: Callable[[np.ndarray], Scales]
    pack: Callable[[np.ndarray, np.ndarray], None]


def has_grid(type_id: int) -> bool:
    """Return whether a weight type has a grid of scales and codes."""
    return quant_type(type_id).name in _KINDS


def grid_of(type_id: int, raw: np.ndarray, shape: tuple[int, int]) -> Grid:
    """Read the grid of a matrix `[R, n]` from its blocks, uint8 `[nbytes]`.

    Raises ValueError for a type without a grid, and for the wrong number of bytes.
    """
    kind, blocks = _kind(type_id), _blocks(type_id, raw, shape[0] * shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        scale, low = kind.scales(blocks)
    scale = np.ascontiguousarray(scale, np.float32).reshape(shape[0], -1)
    low = np.zeros_like(scale) if low is None else np.ascontiguousarray(low).reshape(scale.shape)
    return Grid(scale, low, kind.group, kind.first, kind.last)


def with_codes(type_id: int, raw: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return a copy of `raw` with its codes replaced by `codes` (int8 `[R, n]`).

    Raises the same errors as `grid_of`.
    """
    kind, out = _kind(type_id), _blocks(type_id, raw, codes.size).copy()
    least = 0 if kind.pack is _bytes else kind.first  # a signed byte is written unchanged
    kind.pack(out, (codes.astype(np.int16) - least).astype(np.uint8).reshape(len(out), -1))
    return out.reshape(-1)


def _kind(type_id: int) -> _Kind:
    name = quant_type(type_id).name
    if name not in _KINDS:
        raise ValueError(f"{name} has no grid of scales and codes")
    return _KINDS[name]


def _blocks(type_id: int, raw: np.ndarray, n_elements: int) -> np.ndarray:
    if raw.dtype != np.uint8 or raw.size != nbytes(type_id, n_elements):
        raise ValueError(f"{raw.size} bytes, expected {nbytes(type_id, n_elements)}")
    return np.asarray(raw).reshape(-1, quant_type(type_id).type_size)


# Scales


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Read the half-precision number at byte `at` of every block, as float32 `[blocks, 1]`."""
    found: np.ndarray = blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)
    return found


def _one(blocks: np.ndarray) -> Scales:
    return _half(blocks, 0), None


def _one_with_offset(blocks: np.ndarray) -> Scales:
    return _half(blocks, 0), -_half(blocks, 2)


def _q2_k(blocks: np.ndarray) -> Scales:
    both = blocks[:, :16]
    return (
        _half(blocks, 80) * (both & 15).astype(np.float32),
        _half(blocks, 82) * (both >> 4).astype(np.float32),
    )


def _q3_k(blocks: np.ndarray) -> Scales:
    b = blocks[:, 96:108]
    low = np.concatenate([b[:, :8] & 15, b[:, :8] >> 4], axis=1)
    high = np.concatenate([(b[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return _half(blocks, 108) * ((low | (high << 4)).astype(np.float32) - np.float32(32)), None


def _six_bits(blocks: np.ndarray) -> Scales:
    """Return `scale` and `low` of Q4_K and Q5_K blocks (`nbllama.quants.kquants.scale_and_min`)."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    low = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return (
        _half(blocks, 0) * scale.astype(np.float32),
        _half(blocks, 2) * low.astype(np.float32),
    )


def _q6_k(blocks: np.ndarray) -> Scales:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32), None


# Codes


def _bytes(blocks: np.ndarray, codes: np.ndarray) -> None:
    blocks[:, 2:] = codes


def _nibbles(at: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a function that packs the low four bits of 32 codes, starting at byte `at`."""

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[:, at : at + 16] = (codes[:, :16] & 15) | (codes[:, 16:] << 4)

    return pack


def _five_bits(at: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a function that packs 32 fifth bits at byte `at`, followed by the low four bits."""

    def pack(blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[:, at : at + 4] = np.packbits(codes >> 4, axis=1, bitorder="little")
        _nibbles(at + 4)(blocks, codes)

    return pack


def _across(bits: np.ndarray) -> np.ndarray:
    """Pack `bits` (0 or 1, `[blocks, 256]`) into 32 bytes per block.

    Element 32 k + j becomes bit k of byte j.
    """
    made: np.ndarray = np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little")[:, 0]
    return made


def _two_bits(codes: np.ndarray) -> np.ndarray:
    """Pack the low two bits of 256 codes into 64 bytes."""
    q = (codes & 3).reshape(-1, 2, 4, 32)
    made = q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)
    packed: np.ndarray = made.reshape(-1, 64)
    return packed


def _four_bits(codes: np.ndarray) -> np.ndarray:
    """Pack the low four bits of 256 codes into 128 bytes."""
    q = (codes & 15).reshape(-1, 4, 2, 32)
    made: np.ndarray = (q[:, :, 0] | (q[:, :, 1] << 4)).reshape(-1, 128)
    return made


def _pack_q2_k(blocks: np.ndarray, codes: np.ndarray) -> None:
    blocks[:, 16:80] = _two_bits(codes)


def _pack_q3_k(blocks: np.ndarray, codes: np.ndarray) -> None:
    blocks[:, :32] = _across(codes >> 2)
    blocks[:, 32:96] = _two_bits(codes)


def _pack_q4_k(blocks: np.ndarray, codes: np.ndarray) -> None:
    blocks[:, 16:144] = _four_bits(codes)


def _pack_q5_k(blocks: np.ndarray, codes: np.ndarray) -> None:
    blocks[:, 16:48] = _across(codes >> 4)
    blocks[:, 48:176] = _four_bits(codes)


def _pack_q6_k(blocks: np.ndarray, codes: np.ndarray) -> None:
    q = codes.reshape(-1, 2, 2, 2, 32)  # half, nibble, upper or lower 32 bytes, byte
    low = q & 15
    blocks[:, :128] = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    f = (codes >> 4).reshape(-1, 2, 4, 32)
    high = f[:, :, 0] | (f[:, :, 1] << 2) | (f[:, :, 2] << 4) | (f[:, :, 3] << 6)
    blocks[:, 128:192] = high.reshape(-1, 64)


_KINDS = {
    "Q4_0": _Kind(32, -8, 7, _one, _nibbles(2)),
    "Q4_1": _Kind(32, 0, 15, _one_with_offset, _nibbles(4)),
    "Q5_0": _Kind(32, -16, 15, _one, _five_bits(2)),
    "Q5_1": _Kind(32, 0, 31, _one_with_offset, _five_bits(4)),
    "Q8_0": _Kind(32, -127, 127, _one, _bytes),
    "Q2_K": _Kind(16, 0, 3, _q2_k, _pack_q2_k),
    "Q3_K": _Kind(16, -4, 3, _q3_k, _pack_q3_k),
    "Q4_K": _Kind(32, 0, 15, _six_bits, _pack_q4_k),
    "Q5_K": _Kind(32, 0, 31, _six_bits, _pack_q5_k),
    "Q6_K": _Kind(16, -32, 31, _q6_k, _pack_q6_k),
}
