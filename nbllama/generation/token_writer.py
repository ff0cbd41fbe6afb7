"""Write the phases of a token's program (`nbllama.generation.token_program`) to its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbllama.ops.linear.linear import LoraPair
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.op import check_array, check_output
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.run import n_threads
from nbllama.ops.token.tasks import LEAST_ROWS, MOST_ROWS, TASKS
from nbllama.quants.dot import int8_block

Row = tuple[float, ...]


class Layer(NamedTuple):
    """A product y `[n_out]` = w x with its bias and LoRA pair; with `add`, y += w x.

    If the products of a phase have different inputs, `x` is the input of this product, and `at` is
    the index at which this input begins in the int8 blocks. If `chosen` (int32 `[1]`) is given, the
    weight's bytes, the bias and the pair cover all `experts`, and `chosen` contains the index of
    the expert to use.
    """

    w: Weight
    pair: LoraPair | None
    bias: np.ndarray | None
    y: np.ndarray
    add: bool = False
    x: np.ndarray | None = None
    at: int = 0
    chosen: np.ndarray | None = None
    experts: int = 1


class Writer:
    """A builder for a program's tables; it also keeps alive the arrays that the rows point to."""

    def __init__(self, codes: dict[int, int], exact: bool) -> None:
        self.rows: dict[int, list[Row]] = {kind: [] for kind in kinds.TABLES}
        self.phases: list[tuple[int, int, int, int]] = []
        self.kept: list[np.ndarray] = []
        self._codes, self._exact = codes, exact

    def floats(self, array: np.ndarray | None, *shape: int) -> int:
        """Return the address of a float32 array of this shape, or 0 for None."""
        if array is None:
            return 0
        check_array("token program", "array", array, shape)
        self.kept.append(array)
        return int(array.ctypes.data)

    def ints(self, array: np.ndarray | None, *shape: int) -> int:
        """Return the address of an int32 array of this shape, or 0 for None."""
        if array is None:
            return 0
        check_array("token program", "array", array, shape, dtype=np.int32)
        self.kept.append(array)
        return int(array.ctypes.data)

    def phase(self, kind: int, tasks: int, rows: Sequence[Row] = ()) -> None:
        """Add a phase and its rows; SCORES and JOIN use the newest row of HEADS."""
        table = self.rows[kinds.HEADS if kind in (kinds.SCORES, kinds.JOIN) else kind]
        first = len(table) if rows else len(table) - 1
        table.extend(rows)
        self.phases.append((kind, first, len(rows), tasks))

    def forms(self, ws: Sequence[Weight]) -> int:
        """Return flags for the kinds of int8 blocks that these weights read as input."""
        blocks = set() if self._exact else {int8_block(w.type_id) for w in ws}
        return (kinds.INT8_32 if 32 in blocks else 0) | (kinds.INT8_256 if 256 in blocks else 0)

    def products(self, x: np.ndarray, layers: Sequence[Layer]) -> None:
        """Add products that read x, after a phase that computes h = scale A x for their pairs."""
        hidden, rows = [], []
        per_task = sum(item.w.shape[0] for item in layers) // (TASKS * n_threads())
        per_task = min(max(per_task, LEAST_ROWS), MOST_ROWS)
        for item in layers:
            w, read, chosen = item.w, x if item.x is None else item.x, self.ints(item.chosen, 1)
            n_out, n_in, many = w.shape[0], len(read), () if chosen == 0 else (item.experts,)
            if w.shape[1] != n_in or w.raw.size != item.experts * n_out * w.row_bytes:
                raise ValueError(
                    f"{w.name}: {w.raw.size} bytes do not match a matrix {w.shape} with {n_in} "
                    f"inputs"
                )
            check_output(w.name, "y", item.y, (n_out,))
            self.kept.append(w.raw)
            h = b = rank = 0
            if item.pair is not None and (rank := item.pair.a.shape[-2]):
                memory = np.empty(rank, np.float32)
                a, b_rows = (np.ascontiguousarray(m) for m in (item.pair.a, item.pair.b))
                h, b = self.floats(memory, rank), self.floats(b_rows, *many, n_out, rank)
                at = (self.floats(a, *many, rank, n_in), self.floats(read, n_in), h)
                hidden.append((*at, rank, n_in, item.pair.scale, chosen))
            rows.append((
                w.raw.ctypes.data, w.row_bytes, w.raw.size, self._codes[w.type_id], n_out, n_in,
                self.floats(read, n_in), self.floats(item.y, n_out), item.add,
                self.floats(item.bias, *many, n_out), h, b, rank, per_task, item.at, chosen,
            ))  # fmt: skip
        if hidden:
            self.phase(kinds.HIDDEN, sum(row[3] for row in hidden), hidden)
        self.phase(kinds.PRODUCT, sum(-(-row[4] // per_task) for row in rows), rows)

    def tables(self) -> dict[str, np.ndarray]:
        """Return the program and its tables by their names in `STEP`."""
        made = {"program": np.array(self.phases, kinds.PHASE)}
        for kind, (name, dtype) in kinds.TABLES.items():
            made[name] = np.array(self.rows[kind], dtype)
        return made
