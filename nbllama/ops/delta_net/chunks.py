"""The delta rule, computed one chunk of tokens at a time with products of small matrices.

`nbllama.ops.delta_net.delta_net` contains the formula for one token. For a chunk of C tokens, let
S be the state before the chunk, a[t] = exp(g[1] + ... + g[t]) and G[t, j] = exp(g[j+1] + ... +
g[t]):

    x[t] = v[t] - a[t] S k[t] - sum over j < t of G[t, j] (k[t] . k[j]) d[j]     d[t] = beta[t] x[t]
    o[t] = scale (a[t] S q[t] + sum over j <= t of G[t, j] (q[t] . k[j]) d[j])
    S   <- a[C] S + sum over j of G[C, j] d[j] k[j]T

x is the solution of a triangular system and is computed six rows at a time. The sums over j include
no token after t, so later tokens do not change a token's result. G is computed as a product of
factors exp(g), because the difference between two cumulative sums of g would lose precision when
the past fades quickly. Each chunk starts at a multiple of CHUNK in its sequence. S is stored
transposed, `[D, M]`.

All arrays in this module are flat. Their rows are `stride(width)` numbers apart (whole panels plus
LINE), because rows a power of two apart would compete for a few sets of the L1 cache. The
padding at the end of a row or of a short chunk is 0.

Source: Yang, Wang, Zhang, Shen, Kim, "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length" (2024), section 3; for the version with gates: Yang, Kautz, Hatamizadeh (2024).
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS, VL
from nbllama.kernels.simd import fma_tile, transpose_tile

CHUNK = 5 * ROWS  # tokens per chunk: a multiple of ROWS, just below a multiple of PANEL
LINE = 16  # floats in a cache line


@kernel()
def stride(width):
    """Return the distance between the starts of adjacent rows of `width` numbers."""
    return (width + PANEL - 1) // PANEL * PANEL + LINE


@kernel()
def numbers(rows, width):
    """Return the size of an array for `rows` rows and the extra rows that a tile may touch."""
    return ((rows + PANEL - 1) // PANEL * PANEL + ROWS) * stride(width)


@kernel()
def zeros(rows, width):
    """Return an array of `numbers(rows, width)` zeros."""
    return np.zeros(numbers(rows, width), np.float32)


@kernel()
def multiply(a, a_row, a_k, b, b_ld, n_k, c, c_ld, rows, columns, fresh):
    """Add the sum over k of A[i, k] B[k, j] to C[i, j]; with `fresh`, overwrite C[i, j]."""
    for i in range(0, rows, ROWS):
        for j in range(0, columns, PANEL):
            fma_tile(a, i * a_row, a_row, a_k, b, j, b_ld, n_k, c, i * c_ld + j, c_ld, fresh)


@kernel()
def multiply_lower(a, ld, b, b_ld, n, c, c_ld, columns):
    """Add the sum over k <= i of A[i, k] B[k, j] to C[i, j]; A `[n, n]` is 0 above the diagonal."""
    for i in range(0, n, ROWS):
        for j in range(0, columns, PANEL):
            n_k = min(i + ROWS, n)
            fma_tile(a, i * ld, ld, 1, b, j, b_ld, n_k, c, i * c_ld + j, c_ld, False)


@kernel()
def multiply_upper(a, ld, b, b_ld, n, c, c_ld, columns):
    """Add the sum over k >= i of A[k, i] B[k, j] to C[i, j]; A is 0 above the diagonal."""
    for i in range(0, n, ROWS):
        for j in range(0, columns, PANEL):
            at = i * c_ld + j
            fma_tile(
                a, i * ld + i, 1, ld, b, i * b_ld + j, b_ld, n - i, c, at, c_ld, False
            )  # fmt: skip


@kernel()
def transpose(x, x_ld, rows, columns, y, y_ld):
    """Write y[i, j] = x[j, i]; `rows` and `columns` are rounded up to multiples of VL."""
    for i in range(0, columns, VL):
        for j in range(0, rows, VL):
            transpose_tile(x, j * x_ld + i, x_ld, y, i * y_ld + j, y_ld)


@kernel()
def add_scaled(factor, x, y):
    """Compute y += factor * x."""
    for i in range(y.shape[0]):
        y[i] += factor * x[i]


@kernel()
def scaled(factor, x, y):
    """Compute y = factor * x; y may be the same array as x."""
    for i in range(y.shape[0]):
        y[i] = factor * x[i]


@kernel(fast=True)
def dot(x, y):
    """Return the dot product of x and y."""
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        total += x[i] * y[i]
    return total


@kernel()
def load(x, first, n, head, scale, y):
    """Write scale * x[first + t, head] to row t of y for t < n, and zeros to the other rows."""
    width = x.shape[2]
    ld = stride(width)
    for t in range(n):
        scaled(scale, x[first + t, head], y[t * ld : t * ld + width])
    y[n * ld : CHUNK * ld] = np.float32(0.0)


@kernel()
def load_gates(e, beta, first, n, h, b, fade, until):
    """Write beta to b `[C]`, G to `fade` `[C, C]`, and a to `until` `[C]`; e is exp(g).

    The padding after the n tokens is filled as if exp(g) were 1 and beta were 0, so the last row of
    G is also correct at the end of a short chunk.
    """
    ld = stride(CHUNK)
    past = np.float32(1.0)
    for t in range(CHUNK):
        factor = e[first + t, h] if t < n else np.float32(1.0)
        b[t] = beta[first + t, h] if t < n else np.float32(0.0)
        past *= factor
        until[t] = past
        if t > 0:
            scaled(factor, fade[(t - 1) * ld : (t - 1) * ld + t], fade[t * ld : t * ld + t])
        fade[t * ld + t] = np.float32(1.0)


@kernel()
def mask(fade, b, n, sign, diagonal, s):
    """Set s[t, j] to sign * G[t, j] * b[j] * s[t, j] for j < t + diagonal, else to 0.

    s is `[C, C]`.
    """
    ld = stride(CHUNK)
    for t in range(n):
        row, of = s[t * ld : (t + 1) * ld], fade[t * ld : (t + 1) * ld]
        for j in range(t + diagonal):
            row[j] *= sign * of[j] * b[j]
        row[t + diagonal :] = np.float32(0.0)


@kernel()
def solve(low, n, x, ld, width):
    """Solve in place, starting with the first row: x[t] += sum over j < t of low[t, j] x[j]."""
    c = stride(CHUNK)
    for i in range(0, n, ROWS):
        if i > 0:
            for j in range(0, width, PANEL):
                fma_tile(low, i * c, c, 1, x, j, ld, i, x, i * ld + j, ld, False)
        for t in range(i + 1, min(i + ROWS, n)):
            for j in range(i, t):
                add_scaled(low[t * c + j], x[j * ld : j * ld + width], x[t * ld : t * ld + width])


@kernel()
def missing(rows, turned, state, fade, until, b, n, d, m, low, memory, x):
    """Overwrite row t of x, which contains v[t], with x[t] as defined in the module docstring.

    `rows` `[C, D]` contains the keys, and `turned` is its transpose.
    """
    ld, c = stride(m), stride(CHUNK)
    multiply(rows, stride(d), 1, turned, c, d, low, c, n, CHUNK, True)
    mask(fade, b, n, np.float32(-1.0), 0, low)
    multiply(rows, stride(d), 1, state, ld, d, memory, ld, n, m, True)
    for t in range(n):
        add_scaled(-until[t], memory[t * ld : t * ld + m], x[t * ld : t * ld + m])
    solve(low, n, x, ld, m)


@kernel()
def advance(rows, fade, until, b, n, d, m, x, state):
    """Update S at the end of a chunk, and overwrite row j of x with G[C, j] d[j]."""
    ld, last = stride(m), (CHUNK - 1) * stride(CHUNK)
    for t in range(n):
        row = x[t * ld : t * ld + m]
        scaled(fade[last + t] * b[t], row, row)
    scaled(until[CHUNK - 1], state, state)
    multiply(rows, 1, stride(d), x, ld, n, state, ld, d, m, False)


@kernel()
def through_chunks(q, k, v, e, beta, scale, first, last, of, h, o):
    """Write o for tokens first to last - 1 and head h, given the queries and keys of head `of`."""
    d, m = k.shape[2], v.shape[2]
    ld, c = stride(m), stride(CHUNK)
    keys, queries, turned = zeros(CHUNK, d), zeros(CHUNK, d), zeros(d, CHUNK)
    x, out, state = zeros(CHUNK, m), zeros(CHUNK, m), zeros(d, m)
    low, seen, fade = zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK), zeros(CHUNK, CHUNK)
    b, until = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    one = np.float32(1.0)
    for at in range(first, last, CHUNK):
        n = min(CHUNK, last - at)
        load(k, at, n, of, one, keys)
        load(q, at, n, of, scale, queries)
        load(v, at, n, h, one, x)
        load_gates(e, beta, at, n, h, b, fade, until)
        transpose(keys, stride(d), CHUNK, d, turned, c)
        missing(keys, turned, state, fade, until, b, n, d, m, low, out, x)
        multiply(queries, stride(d), 1, turned, c, d, seen, c, n, CHUNK, True)
        mask(fade, b, n, one, 1, seen)
        multiply(queries, stride(d), 1, state, ld, d, out, ld, n, m, True)
        for t in range(n):
            row = out[t * ld : t * ld + m]
            scaled(until[t], row, row)
        multiply_lower(seen, c, x, ld, n, out, ld, m)
        for t in range(n):
            scaled(one, out[t * ld : t * ld + m], o[at + t, h])
        if at + n < last:
            advance(keys, fade, until, b, n, d, m, x, state)
