"""Round a whole matrix with error feedback, as described in `nbllama.quants.encode.feedback`.

The second moments H of the inputs are factorised as L D Lᵀ by a Cholesky factorisation in float64
that processes strips of columns. Columns are sorted so that columns with large inputs are rounded
first, while all other columns can still compensate for their errors. Sorting is possible because
all scales are known in advance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.export.grids import Grid
from nbllama.ops.linear.matmul import Weight, matmul
from nbllama.ops.linear.panels import pack, panel_floats
from nbllama.quants import as_readonly
from nbllama.quants.encode.feedback import round_piece

PIECE = 256  # columns processed between two matrix products
STRIP, WIDE = 512, 1024  # columns factorised and updated at a time
DAMPING = 0.01
"""Damping added to the diagonal of H, as a fraction of the diagonal's mean. It keeps H invertible
if a sample has fewer tokens than the layer has inputs, and limits errors on inputs that the sample
does not use."""
_F32 = 0  # ggml's id


class Factor(NamedTuple):
    """H with sorted columns, factorised as L D Lᵀ.

    `order` lists the columns of H in sorted order, `lower` is L, float32 `[n, n]`, and `importance`
    is the diagonal of D, float64 `[n]`.
    """

    order: np.ndarray
    lower: np.ndarray
    importance: np.ndarray


class Rounded(NamedTuple):
    """The codes of a rounded matrix, int8 `[R, n]`, and the cost of each row, float64 `[R]`.

    The cost is the row's contribution to tr(E (H + damping) Eᵀ), where E is the rounding error.
    """

    codes: np.ndarray
    cost: np.ndarray


def factorise(h: np.ndarray, damping: float = DAMPING) -> Factor:
    """Factorise H (float32 `[n, n]`); only its lower triangle is read.

    Raises ValueError if H is not finite, or not positive definite despite the damping.
    """
    diagonal = h.diagonal().astype(np.float64)
    if not np.isfinite(diagonal.sum()):
        raise ValueError("the inputs of the layer are not finite")
    order = np.argsort(diagonal, kind="stable")
    lower = _in_order(h, order)
    lower[np.diag_indices_from(lower)] += damping * (diagonal.mean() or 1.0)
    try:
        _cholesky(lower)
    except np.linalg.LinAlgError as e:
        raise ValueError(f"the inputs' second moments cannot be factorised: {e}") from e
    root = lower.diagonal().copy()
    lower /= root
    return Factor(order, lower.astype(np.float32), root**2)


def _in_order(h: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorder the rows and columns of a symmetric matrix, given by its lower triangle."""
    whole = np.tril(h)
    for at in range(0, len(h), STRIP):
        end = at + STRIP
        whole[at:end, end:] = whole[end:, at:end].T
        square = whole[at:end, at:end]
        square += np.tril(square, -1).T
    made = np.empty(h.shape)
    for at in range(0, len(h), STRIP):
        made[at : at + STRIP] = whole[order[at : at + STRIP]][:, order]
    return made


def _cholesky(a: np.ndarray) -> None:
    """Replace a symmetric float64 matrix with its Cholesky factor, one strip of columns at a time.

    Most of the work is done by matrix products, so this function is three times as fast as LAPACK's
    factorisation of the whole matrix. It also avoids a second copy of the matrix.
    """
    n = len(a)
    for at in range(0, n, STRIP):
        end = min(at + STRIP, n)
        a[at:end, at:end] = top = np.linalg.cholesky(a[at:end, at:end])
        a[at:end, end:] = 0.0
        a[end:, at:end] = strip = a[end:, at:end] @ np.linalg.inv(top).T
        for first in range(end, n, WIDE):  # the remaining columns, below the diagonal
            part = strip[first - end :]
            a[first:, first : first + WIDE] -= part @ part[:WIDE].T


def round_matrix(w: np.ndarray, grid: Grid, factor: Factor) -> Rounded:
    """Round w (float32 `[R, n]`) onto a grid with error feedback.

    Raises ValueError for mismatched shapes.
    """
    rows, n = w.shape
    if len(factor.order) != n or grid.scale.shape != (rows, n // grid.group):
        raise ValueError(
            f"the shapes of the weights {w.shape}, the grid {grid.scale.shape} and a factor of "
            f"{len(factor.order)} columns do not match"
        )
    weights = np.ascontiguousarray(w[:, factor.order])
    group = (factor.order // grid.group).astype(np.int32)
    codes, cost = np.empty((rows, n), np.int8), np.zeros(rows)
    later: list[tuple[int, int, np.ndarray]] = []  # first and last column, packed errors
    for end in range(n, 0, -PIECE):
        at = max(0, end - PIECE)
        m = end - at
        wanted = weights[:, at:end].copy()  # must be a copy, because it is overwritten
        for first, last, panels in later:
            part = np.ascontiguousarray(factor.lower[first:last, at:end].T)
            raw = as_readonly(part.reshape(-1).view(np.uint8))
            matmul(Weight("feedback", _F32, raw, part.shape), panels, wanted, add=True)
        errors = np.empty((rows, m), np.float32)
        round_piece(
            wanted, weights, np.ascontiguousarray(factor.lower[at:end, at:end]), grid.scale,
            low=grid.low, importance=factor.importance[at:end].copy(), group=group[at:end],
            first=grid.first, last=grid.last, at=at, codes=codes, errors=errors, cost=cost,
        )  # fmt: skip
        if at:
            np.negative(errors, out=errors)
            later.append((at, end, pack(errors, np.empty(panel_floats(rows, m), np.float32))))
    out = np.empty_like(codes)
    out[:, factor.order] = codes
    return Rounded(out, cost)
