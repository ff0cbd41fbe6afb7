"""The entry functions of the encoders, one per type, which encode chunks of blocks in parallel.

Chunks are independent and are written to separate bytes, so the result is the same for any number
of threads. Each entry function calls its encoder by name. If an entry function received its
encoder as an argument, Numba would recompile the entry function in every process.
"""

from __future__ import annotations

import numba
import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.quants.encode import floats, kquants, legacy

_CHUNK = 16384  # weights per chunk; a multiple of every block size


@kernel(own="quants/encode")
def _span(i, chunk, n_blocks):
    """Return the first block of chunk i, and the number of blocks in the chunk."""
    first = np.int64(i) * chunk
    return first, min(np.int64(chunk), n_blocks - first)


@kernel(parallel=True, own="quants/encode")
def q4_0(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q4_0."""
    chunk = _CHUNK // 32
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        legacy.encode_q4_0(x, 32 * first, n, out, 18 * first)


@kernel(parallel=True, own="quants/encode")
def q4_1(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q4_1."""
    chunk = _CHUNK // 32
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        legacy.encode_q4_1(x, 32 * first, n, out, 20 * first)


@kernel(parallel=True, own="quants/encode")
def q5_0(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q5_0."""
    chunk = _CHUNK // 32
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        legacy.encode_q5_0(x, 32 * first, n, out, 22 * first)


@kernel(parallel=True, own="quants/encode")
def q5_1(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q5_1."""
    chunk = _CHUNK // 32
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        legacy.encode_q5_1(x, 32 * first, n, out, 24 * first)


@kernel(parallel=True, own="quants/encode")
def q8_0(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q8_0."""
    chunk = _CHUNK // 32
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        legacy.encode_q8_0(x, 32 * first, n, out, 34 * first)


@kernel(parallel=True, own="quants/encode")
def q2_k(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q2_K."""
    chunk = _CHUNK // 256
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        kquants.encode_q2_k(x, 256 * first, n, out, 84 * first)


@kernel(parallel=True, own="quants/encode")
def q3_k(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q3_K."""
    chunk = _CHUNK // 256
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        kquants.encode_q3_k(x, 256 * first, n, out, 110 * first)


@kernel(parallel=True, own="quants/encode")
def q4_k(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q4_K."""
    chunk = _CHUNK // 256
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        kquants.encode_q4_k(x, 256 * first, n, out, 144 * first)


@kernel(parallel=True, own="quants/encode")
def q5_k(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q5_K."""
    chunk = _CHUNK // 256
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        kquants.encode_q5_k(x, 256 * first, n, out, 176 * first)


@kernel(parallel=True, own="quants/encode")
def q6_k(x, n_blocks, out):
    """Encode n_blocks blocks of x as Q6_K."""
    chunk = _CHUNK // 256
    for i in numba.prange(-(-n_blocks // chunk)):
        first, n = _span(i, chunk, n_blocks)
        kquants.encode_q6_k(x, 256 * first, n, out, 210 * first)


@kernel(parallel=True, own="quants/encode")
def f16(x, n_blocks, out):
    """Round n_blocks numbers of x to F16."""
    for i in numba.prange(-(-n_blocks // _CHUNK)):
        first, n = _span(i, _CHUNK, n_blocks)
        floats.encode_f16(x, first, n, out, 2 * first)


@kernel(parallel=True, own="quants/encode")
def bf16(x, n_blocks, out):
    """Round n_blocks numbers of x to BF16."""
    for i in numba.prange(-(-n_blocks // _CHUNK)):
        first, n = _span(i, _CHUNK, n_blocks)
        floats.encode_bf16(x, first, n, out, 2 * first)
