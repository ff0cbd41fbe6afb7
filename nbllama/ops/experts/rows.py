"""Gather the input rows of an expert, and add the expert's output rows to the layer's output.

    gather      y[i] = x[rows[i]]               gradient: dx[rows[i]] += dy[i]
    add         out[rows[i]] += y[i]            gradient: dy[i] = dout[rows[i]]

`rows` contains each token at most once, because a token uses each expert at most once. Experts are
processed in ascending order, so the order in which a token's sum is accumulated depends only on
which experts the token uses.

x and out are float32 `[N, C]`, y is float32 `[M, C]`, and rows is int64 `[M]`. The gradient needs
only rows.

llama.cpp: `ggml_mul_mat_id`, which also groups rows, and `ggml_add`, which adds the K outputs of a
token in score order. finetune.cpp has no experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly


class Group(NamedTuple):
    """The tokens that use an expert.

    `slots` is the slice that the tokens occupy in an array sorted by expert, and `rows` contains
    their indices in the batch.
    """

    expert: int
    slots: slice
    rows: np.ndarray


class Groups:
    """All (token, chosen expert) pairs in a batch, sorted by expert and then by token."""

    def __init__(self, chosen: np.ndarray, n_experts: int) -> None:
        """Sort the pairs; `chosen`, int32 `[N, K]`, contains the K experts of each token."""
        self.order = np.argsort(chosen, axis=None, kind="stable")
        self.rows = self.order // chosen.shape[1]
        self.counts = np.bincount(chosen.reshape(-1), minlength=n_experts)

    def __iter__(self) -> Iterator[Group]:
        """Yield the nonempty groups in ascending expert order."""
        ends = np.cumsum(self.counts)
        for expert in np.flatnonzero(self.counts):
            slots = slice(int(ends[expert] - self.counts[expert]), int(ends[expert]))
            yield Group(int(expert), slots, self.rows[slots])

    def sorted(self, w: np.ndarray) -> np.ndarray:
        """Return w `[N, K]` as a flat array `[N K]`, sorted by expert."""
        return np.asarray(w.reshape(-1)[self.order])

    def unsorted(self, w: np.ndarray, k: int) -> np.ndarray:
        """Undo `sorted`: return the flat array w `[N K]` in token order, as `[N, K]`."""
        out = np.empty_like(w)
        out[self.order] = w
        return out.reshape(-1, k)


@kernel(parallel=True)
def _gather(x, rows, y):
    for i in prange(rows.shape[0]):
        n = rows[i]
        for c in range(y.shape[1]):
            y[i, c] = x[n, c]


@kernel(parallel=True)
def _add(y, rows, out):
    for i in prange(rows.shape[0]):
        n = rows[i]
        for c in range(y.shape[1]):
            out[n, c] += y[i, c]


def _check(x: np.ndarray, rows: np.ndarray) -> tuple[int, int]:
    if np.ndim(x) != 2 or np.ndim(rows) != 1:
        raise ValueError(
            f"rows: x has shape {np.shape(x)}, expected [N, C], and rows has shape "
            f"{np.shape(rows)}, expected [M]"
        )
    check_array("rows", "rows", rows, rows.shape, dtype=np.int64)
    if len(rows) and not (rows[0] >= 0 and rows[-1] < len(x) and (np.diff(rows) > 0).all()):
        raise ValueError(f"rows: row indices must be ascending and within 0..{len(x) - 1}")
    return len(rows), x.shape[1]


def gather_rows(x: np.ndarray, rows: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Write x[rows] to y `[M, C]`, and return y; `rows` is int64 and ascending.

    Raises ValueError for mismatched arrays.
    """
    shape = _check(x, rows)
    check_array("gather_rows", "x", x, x.shape)
    check_output("gather_rows", "y", y, shape)
    _gather(readonly(x), readonly(rows), y)
    return y


def add_rows(y: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Compute out[rows] += y `[M, C]`; `rows` is int64 and ascending.

    Raises ValueError for mismatched arrays.
    """
    shape = _check(out, rows)
    check_array("add_rows", "y", y, shape)
    check_output("add_rows", "out", out, out.shape)
    _add(readonly(y), readonly(rows), out)


_ROWS = {"tiny": (3, 4, (0, 2)), "one": (1, 33, (0,)), "odd": (37, 101, (0, 4, 11, 36))}


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, width, rows = _ROWS[size]
    x = rng.standard_normal((n, width)).astype(dtype)
    return {"x": x, "y": rng.standard_normal((len(rows), width)).astype(dtype), "size": size}


def _rows(size: str) -> np.ndarray:
    return np.array(_ROWS[size][2], np.int64)


def _forward_ref(x: np.ndarray, y: np.ndarray, size: str) -> np.ndarray:
    out = x.copy()
    out[_rows(size)] += y
    return out


def _forward(x: np.ndarray, y: np.ndarray, size: str) -> np.ndarray:
    check_array("add_rows", "out", x, x.shape)
    out = x.copy()
    add_rows(y, _rows(size), out)
    return out


def _gradients(dy: np.ndarray, x: np.ndarray, y: np.ndarray, size: str) -> Gradients:
    return {"x": dy.copy(), "y": gather_rows(dy, _rows(size), np.empty_like(y))}


OPS = (
    Op(
        name="rows of an expert",
        sizes=tuple(_ROWS),
        sample=_sample,
        forward_ref=_forward_ref,
        grad_ref=lambda dy, x, y, size: {"x": dy, "y": dy[_rows(size)]},
        forward=_forward,
        grad=_gradients,
        tolerance=1e-7,
        why="one sum",
        ggml="ggml_add; ggml_get_rows",
    ),
)
