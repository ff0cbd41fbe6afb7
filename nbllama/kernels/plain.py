"""The routines of `nbllama.kernels.simd` as plain loops, which are easier to read.

With `NBLLAMA_KERNELS=plain`, these loops replace the vector code in every matmul, attention, LoRA
product and loss in the package. The results are equal up to rounding: a vector unit rounds a
multiply-add once, whereas these loops round it twice. The loops are several times slower.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL, ROWS, VL

_LARGEST, _SMALLEST = np.float32(88.02), np.float32(-87.0)


@kernel()
def fma_tile(a, a0, a_row, a_k, b, b0, b_k, n_k, c, c0, c_row, fresh):
    """Compute C[i, j] += sum over k of A[i, k] * B[k, j] for a ROWS x PANEL tile of C."""
    a, b, c = a.reshape(-1), b.reshape(-1), c.reshape(-1)
    for i in range(ROWS):
        for j in range(PANEL):
            total = np.float32(0.0) if fresh else c[c0 + i * c_row + j]
            for k in range(n_k):
                total += a[a0 + i * a_row + k * a_k] * b[b0 + k * b_k + j]
            c[c0 + i * c_row + j] = total


@kernel()
def transpose_tile(x, x0, x_row, y, y0, y_row):
    """Set y[y0 + i*y_row + j] = x[x0 + j*x_row + i] for i, j < VL."""
    x, y = x.reshape(-1), y.reshape(-1)
    for i in range(VL):
        for j in range(VL):
            y[y0 + i * y_row + j] = x[x0 + j * x_row + i]


@kernel()
def transpose_add_tile(x, x0, x_row, y, y0, y_row):
    """Compute y[y0 + i*y_row + j] += x[x0 + j*x_row + i] for i, j < VL."""
    x, y = x.reshape(-1), y.reshape(-1)
    for i in range(VL):
        for j in range(VL):
            y[y0 + i * y_row + j] += x[x0 + j * x_row + i]


@kernel()
def row_max(row, start, n):
    """Return the largest number in `row[start : start + n]`; NaNs are ignored."""
    top = np.float32(-np.inf)
    for i in range(start, start + n):
        if row[i] > top:
            top = row[i]
    return top


@kernel()
def exp_f32(x):
    """Compute exp of a float32.

    The result is 0 for x below -87, is at most exp(88.02), and is NaN if x is NaN.
    """
    if x < _SMALLEST:
        return np.float32(0.0)
    return np.float32(np.exp(_LARGEST if x > _LARGEST else x))
