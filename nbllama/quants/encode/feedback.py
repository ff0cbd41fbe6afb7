"""Round the rows of a matrix to given grids, with error feedback to limit the change in `x Wᵀ`.

A layer computes `y = x Wᵀ`. Rounding W to W' changes y. Over the inputs x of a sample, the sum of
the squared changes is

    tr(E H Eᵀ)        E = W' - W  (R, n)        H = sum of xᵀ x over the inputs  (n, n)

With H = L D Lᵀ (L unit lower triangular, D diagonal), this is the sum over j of D_j |c_j|², where
c_j = E_j + (sum over i > j of E_i L_ij) is column j of E L. Therefore, columns are rounded from the
last to the first. Before a column is rounded, it is shifted to compensate for the errors of the
later columns:

    W'_j = nearest(W_j - sum over i > j of E_i L_ij)

Source: GPTQ (Frantar et al. 2022), in the inverse-free form from QuIP (Chee et al. 2023).

Columns are processed in pieces. The feedback from later pieces is computed as one matrix product.
A kernel computes the feedback within a piece, one row at a time. Rows are independent, so the
result is the same for any number of threads.

Column c_j equals W'_j minus the shifted W_j, which is the error of the rounding itself. The sum
above (`cost`) can therefore be accumulated during rounding.

The grid of weight (r, j) consists of the values `scale * q - low` for integers q from `first` to
`last`. Each group of neighbouring columns has its own `scale` and `low` (`nbllama.export.grids`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel


def round_piece_ref(
    wanted: np.ndarray,
    weights: np.ndarray,
    factor: np.ndarray,
    scale: np.ndarray,
    *,
    low: np.ndarray,
    importance: np.ndarray,
    first: int,
    last: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the codes, errors and cost of `round_piece` in plain numpy.

    Codes and errors are `[R, m]`, like `wanted`, and the cost is `[R]`. `scale` and `low` are
    `[R, m]`, with one number per weight. `importance` `[m]` is D.
    """
    wanted = wanted.copy()
    codes, errors = np.zeros_like(wanted), np.zeros_like(wanted)
    cost = np.zeros(len(wanted))
    for j in range(wanted.shape[1] - 1, -1, -1):
        s, m = scale[:, j], low[:, j]
        inverse = np.where(s != 0, 1 / np.where(s != 0, s, 1), 0).astype(wanted.dtype)
        codes[:, j] = np.clip(np.rint((wanted[:, j] + m) * inverse), first, last)
        value = s * codes[:, j] - m
        cost += importance[j] * (value - wanted[:, j]) ** 2
        errors[:, j] = value - weights[:, j]
        wanted[:, :j] -= errors[:, j, None] * factor[j, :j]
    return codes, errors, cost


@kernel(parallel=True, own="quants/encode")
def _round_piece(
    wanted, weights, factor, importance, scale, low, group, first, last, at, codes, errors, cost
):
    m = wanted.shape[1]
    for r in prange(wanted.shape[0]):
        left = np.float64(0)
        for back in range(m):
            j = m - 1 - back
            g = np.uint64(group[j])
            s, least = scale[r, g], low[r, g]
            q = np.float32(0)
            if s != 0:
                q = np.float32(np.rint((wanted[r, j] + least) * (np.float32(1) / s)))
                q = max(first, min(last, q))
            value = s * q - least
            miss = np.float64(value - wanted[r, j])
            left += importance[j] * miss * miss
            error = value - weights[r, at + j]
            codes[r, at + j] = np.int8(q)
            errors[r, j] = error
            for i in range(j):
                wanted[r, i] -= error * factor[j, i]
        cost[r] += left


def round_piece(
    wanted: np.ndarray,
    weights: np.ndarray,
    factor: np.ndarray,
    scale: np.ndarray,
    *,
    low: np.ndarray,
    importance: np.ndarray,
    group: np.ndarray,
    first: int,
    last: int,
    at: int,
    codes: np.ndarray,
    errors: np.ndarray,
    cost: np.ndarray,
) -> None:
    """Round `m` columns of a matrix `[R, n]`, starting with the last, with feedback between them.

    `wanted`, float32 `[R, m]`, contains the columns starting at `at`, minus the feedback from later
    columns; it is overwritten. `weights` is float32 `[R, n]`. `factor`, float32 `[m, m]`, contains
    the rows and columns of L for these columns; only the part below the diagonal is read.
    `importance`, float64 `[m]`, contains the elements of D for these columns. `scale` and `low` are
    float32 `[R, G]`, and `group`, int32 `[m]`, contains the group of each column.

    The function writes `codes`, int8 `[R, n]`, starting at column `at`, and `errors`, float32
    `[R, m]`. It adds the cost of each row to `cost`, float64 `[R]`. Raises `ValueError` if an array
    has a different shape or type.
    """
    (rows, m), n, groups = wanted.shape, weights.shape[1], scale.shape[1]
    wide = {"wanted": (wanted, (rows, m)), "weights": (weights, (rows, n))}
    wide |= {"factor": (factor, (m, m)), "errors": (errors, (rows, m))}
    wide |= {"scale": (scale, (rows, groups)), "low": (low, (rows, groups))}
    for name, (array, shape) in wide.items():
        _check(name, array, shape, np.float32)
    _check("importance", importance, (m,), np.float64)
    _check("group", group, (m,), np.int32)
    _check("codes", codes, (rows, n), np.int8)
    _check("cost", cost, (rows,), np.float64)
    if not 0 <= at <= n - m or m == 0 or group.min() < 0 or group.max() >= groups:
        raise ValueError(
            f"round_piece: columns {at}..{at + m - 1} must be within 0..{n - 1}, and groups within "
            f"0..{groups - 1}"
        )
    if not -128 <= first <= last <= 127:
        raise ValueError(f"round_piece: codes {first} to {last} do not fit in a signed byte")
    given = (weights, factor, importance, scale, low, group)
    readonly = [array.view() for array in given]
    for view in readonly:  # because Numba would compile a second version for writable arrays
        view.flags.writeable = False
    _round_piece(wanted, *readonly, np.float32(first), np.float32(last), at, codes, errors, cost)


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise ValueError if an array has a different shape or dtype, or is not contiguous.

    The kernel does not check bounds, so it would misread such an array.
    """
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        wanted = f"contiguous {np.dtype(dtype)} {shape}"
        raise ValueError(f"round_piece: {name} is {array.dtype} {array.shape}, expected {wanted}")
