"""Quantise rows of x to int8 blocks, for the integer products with W in generation.

Each block of B numbers (256 if W has blocks of 256, otherwise 32) has one scale d:

    d = max |x| / 127        q[k] = round(x[k] / d)        x[k] is about d q[k]

Ties are rounded to even. Sums are stored as well, because the codes of some types of W are not
centred on zero. For blocks of 32, d sum q is stored for each block; for blocks of 256, sum q is
stored for every 16 numbers. A block that contains an infinity or a NaN has d = NaN, so every output
computed from the block is NaN. There is no gradient, because these products are used only in
generation.

llama.cpp: `quantize_row_q8_0`, `quantize_row_q8_1` (which round d to half precision; this module
does not), `quantize_row_q8_K`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.simd import bits_of_float, float_of_bits
from nbllama.ops.op import check_array, readonly
from nbllama.quants.dot import SUMMED

_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it puts the rounded number in the low bits
_ROUND_BITS = np.int32(0x4B400000)
_SIZE = np.int32(0x7FFFFFFF)  # all bits except the sign
_INFINITY = np.int32(0x7F800000)
_LARGEST = np.float32(127.0)


class Int8Rows(NamedTuple):
    """Quantised rows: `q` is int8 `[N, K]`, and `d` is float32 `[N, K/B]`.

    `sums` is float32 `[N, K/32]` for blocks of 32, and int16 `[N, K/16]` for blocks of 256.
    """

    q: np.ndarray
    d: np.ndarray
    sums: np.ndarray


def int8_rows_ref(x: np.ndarray, block: int) -> Int8Rows:
    """Quantise finite x (float32 `[N, K]`) in plain numpy."""
    blocks = x.reshape(len(x), -1, block)
    top = np.abs(blocks).max(axis=2)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    q = np.rint(blocks * inverse[:, :, None]).astype(np.int8).reshape(x.shape)
    d = top / np.float32(127)
    if block == 32:
        sums = d * q.reshape(blocks.shape).sum(axis=2, dtype=np.int32).astype(np.float32)
    else:
        sums = q.reshape(len(x), -1, SUMMED).sum(axis=2, dtype=np.int16)
    return Int8Rows(q, d, sums)


def int8_product_ref(rows: Int8Rows, w: np.ndarray) -> np.ndarray:
    """Multiply the decoded int8 blocks by the decoded matrix w `[n_out, K]`, in plain numpy."""
    block = rows.q.shape[1] // rows.d.shape[1]
    x = rows.q.astype(np.float64) * np.repeat(rows.d.astype(np.float64), block, axis=1)
    return x @ w.astype(np.float64).T


@kernel()
def int8_row(x, block, q, d):
    """Quantise one row in blocks; write the codes to q and the scales to d."""
    for b in range(d.shape[0]):
        part, out = x[b * block : (b + 1) * block], q[b * block : (b + 1) * block]
        top = np.int32(0)
        for k in range(block):  # without the sign bit, bit patterns sort like the numbers
            top = max(top, bits_of_float(part[k]) & _SIZE)
        largest = float_of_bits(top)
        inverse = np.float32(0.0)
        d[b] = largest / _LARGEST
        if top >= _INFINITY:
            d[b] = np.float32(np.nan)
        elif largest > np.float32(0.0):
            inverse = min(_LARGEST / largest, np.float32(3e38))
        if inverse > np.float32(0.0):
            for k in range(block):
                number = bits_of_float(part[k] * inverse + _ROUND) - _ROUND_BITS
                out[k] = np.int8(number)
        else:
            out[:] = np.int8(0)


@kernel()
def int8_sum(q):
    """Return the sum of the codes q."""
    total = np.int32(0)
    for k in range(q.shape[0]):
        total += np.int32(q[k])
    return total


@kernel()
def _rows_32(x, q, d, sums):
    for n in range(x.shape[0]):
        int8_row(x[n], 32, q[n], d[n])
        for b in range(d.shape[1]):
            sums[n, b] = d[n, b] * np.float32(int8_sum(q[n, 32 * b : 32 * b + 32]))


@kernel()
def _rows_256(x, q, d, sums):
    for n in range(x.shape[0]):
        int8_row(x[n], 256, q[n], d[n])
        for s in range(sums.shape[1]):
            sums[n, s] = np.int16(int8_sum(q[n, SUMMED * s : SUMMED * s + SUMMED]))


def int8_rows(x: np.ndarray, block: int) -> Int8Rows:
    """Quantise x (float32 `[N, K]`) in blocks of `block` numbers (32 or 256).

    Raises ValueError if x or `block` is not as described, or K is not a multiple of `block`.
    """
    if np.ndim(x) != 2 or block not in (32, 256) or x.shape[1] == 0 or x.shape[1] % block:
        raise ValueError(
            f"int8_rows: x has shape {np.shape(x)}, expected [N, K] with K a multiple of the block "
            f"size {block}, which must be 32 or 256"
        )
    check_array("int8_rows", "x", x, x.shape)
    n, k = x.shape
    q, d = np.empty((n, k), np.int8), np.empty((n, k // block), np.float32)
    if block == 32:
        rows, run = Int8Rows(q, d, np.empty((n, k // block), np.float32)), _rows_32
    else:
        rows, run = Int8Rows(q, d, np.empty((n, k // SUMMED), np.int16)), _rows_256
    run(readonly(x), *rows)
    return rows
