"""The program by which one token goes through a model: all its phases, written once.

`nbllama.model.block` says the same for any number of tokens; here each of its lines is a row of a
table
(`nbllama.ops.token`) that the threads read. A model's whole variety is in which rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nbllama.model.block import POST_NORMS, QK_NORMS
from nbllama.model.bound import Bound
from nbllama.model.weights import Weights
from nbllama.ops.attention.few import CHUNK
from nbllama.ops.linear.linear import LoraPair
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.op import check_array, check_output
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.run import MOST_TYPES, n_threads, walk
from nbllama.ops.token.tasks import CAP_PART, GATE_PART, LEAST_ROWS, MOST_ROWS, TASKS
from nbllama.quants.dot import SUMMED, int8_block

Row = tuple[float, ...]


class _Writer:
    """Rows of the tables, as they are added; and every array that they point into."""

    def __init__(self, codes: dict[int, int], exact: bool) -> None:
        self.rows: dict[int, list[Row]] = {kind: [] for kind in kinds.TABLES}
        self.phases: list[tuple[int, int, int, int]] = []
        self.kept: list[np.ndarray] = []
        self._codes, self._exact = codes, exact

    def floats(self, array: np.ndarray | None, *shape: int) -> int:
        """Return the address of a float32 array of this shape; 0 for None."""
        if array is None:
            return 0
        check_array("token program", "array", array, shape)
        self.kept.append(array)
        return int(array.ctypes.data)

    def phase(self, kind: int, tasks: int, rows: Sequence[Row] = ()) -> None:
        """Add a phase with its rows; SCORES and JOIN take the newest row of HEADS."""
        table = self.rows[kinds.HEADS if kind in (kinds.SCORES, kinds.JOIN) else kind]
        first = len(table) if rows else len(table) - 1
        table.extend(rows)
        self.phases.append((kind, first, len(rows), tasks))

    def forms(self, ws: Sequence[Weight]) -> int:
        """In which int8 blocks these weights want their input."""
        blocks = set() if self._exact else {int8_block(w.type_id) for w in ws}
        return (kinds.INT8_32 if 32 in blocks else 0) | (kinds.INT8_256 if 256 in blocks else 0)

    def products(
        self,
        x: np.ndarray,
        layers: Sequence[tuple[Weight, LoraPair | None, np.ndarray | None, np.ndarray, bool]],
    ) -> None:
        """Add products that share x, and the phase before them that computes the pairs' h.

        `layers`: of each product its weight, pair, bias, output, and whether it is added.
        """
        n_in, hidden, rows = len(x), [], []
        per_task = sum(w.shape[0] for w, *_ in layers) // (TASKS * n_threads())
        per_task = min(max(per_task, LEAST_ROWS), MOST_ROWS)
        for w, pair, bias, y, add in layers:
            n_out = w.shape[0]
            if w.shape[1] != n_in or w.raw.size != n_out * w.row_bytes:
                raise ValueError(f"{w.name}: {w.raw.size} bytes, {w.shape}, for {n_in} inputs")
            check_output(w.name, "y", y, (n_out,))
            self.kept.append(w.raw)
            h = b = rank = 0
            if pair is not None and pair.rank:
                rank, memory = pair.rank, np.empty(pair.rank, np.float32)
                a, b_rows = np.ascontiguousarray(pair.a), np.ascontiguousarray(pair.b)
                h, b = self.floats(memory, rank), self.floats(b_rows, n_out, rank)
                at = (self.floats(a, rank, n_in), self.floats(x, n_in), h)
                hidden.append((*at, rank, n_in, pair.scale))
            rows.append((
                w.raw.ctypes.data, w.row_bytes, w.raw.size, self._codes[w.type_id], n_out, n_in,
                self.floats(x, n_in), self.floats(y, n_out), add, self.floats(bias, n_out), h, b,
                rank, per_task,
            ))  # fmt: skip
        if hidden:
            self.phase(kinds.HIDDEN, sum(row[3] for row in hidden), hidden)
        self.phase(kinds.PRODUCT, sum(-(-row[4] // per_task) for row in rows), rows)

    def tables(self) -> dict[str, np.ndarray]:
        """Return the program and its tables, by their names in `STEP`."""
        made = {"program": np.array(self.phases, kinds.PHASE)}
        for kind, (name, dtype) in kinds.TABLES.items():
            made[name] = np.array(self.rows[kind], dtype)
        return made


class TokenProgram:
    """The step of one token, for one adapter and one KV cache (`[n_layer, n_ctx, G, D]` each).

    `run` reads the token's embedding in `x` (`[C]`), which becomes the last block's output, and
    leaves the logits in `logits` (`[V]`). Without `exact`, weights whose type has an integer dot
    product see their input in int8 blocks, as in llama.cpp.
    """

    def __init__(
        self,
        model: Weights,
        bound: Bound,
        *,
        k: np.ndarray,
        v: np.ndarray,
        x: np.ndarray,
        exact: bool,
    ) -> None:
        """Write the program of one token.

        Raises ValueError for a model without `has_program`, or for arrays that do not fit.
        """
        hp = model.hp
        self._model, self._bound, self._x = model, bound, x
        self._head = model.matrix(model.output.name.removesuffix(".weight"))
        types = _types(model)
        if len(types) > MOST_TYPES:
            raise ValueError(f"a token's program holds {MOST_TYPES} types, not {len(types)}")
        self._write = _Writer({t: i for i, t in enumerate(types)}, exact)
        self._k, self._v, self._n_ctx = k, v, k.shape[1]
        for cache in (k, v):
            shape = (hp.n_layer, self._n_ctx, hp.n_head_kv, hp.head_dim)
            check_output("token program", "cache", cache, shape)
        check_output("token program", "x", x, (hp.n_embd,))
        self.logits = np.empty(self._head.shape[0], np.float32)
        self._norm = np.empty(hp.n_embd, np.float32)
        n_q, n_kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
        self._q, self._att = np.empty(n_q, np.float32), np.empty(n_q, np.float32)
        self._new_k, self._new_v = np.empty(n_kv, np.float32), np.empty(n_kv, np.float32)
        self._gate, self._up, self._act = (np.empty(hp.n_ff, np.float32) for _ in range(3))
        self._branch = np.empty(hp.n_embd, np.float32)
        for layer in range(hp.n_layer):
            self._attention(layer)
            self._feed_forward(layer)
        self._output()
        self._tables = self._write.tables()
        self._types, self._exact = types, exact
        self._memory = self._workspace(max(hp.n_embd, hp.n_ff, n_q))
        self._step = np.zeros(1, kinds.STEP)
        for name, array in (self._tables | self._memory).items():
            self._step[name] = array.ctypes.data
        self._step["n_phases"] = len(self._tables["program"])
        self._step["most_rows"] = max(map(len, self._tables.values()))
        self._step["width"] = len(self._memory["q32"])
        self._step["chunks"] = len(self._memory["scores"])

    def _workspace(self, widest: int) -> dict[str, np.ndarray]:
        """Allocate the memory of `STEP`, by name."""
        hp, chunks = self._model.hp, -(-self._n_ctx // CHUNK)
        whole = -(-widest // 256) * 256
        phases = len(self._tables["program"])
        return {
            "scores": np.empty((chunks, hp.n_head, CHUNK), np.float32),
            "found": np.empty((chunks, hp.n_head, 2 + hp.head_dim), np.float32),
            "scratch": np.empty((n_threads(), whole), np.float32),
            "q32": np.empty(whole, np.int8),
            "d32": np.empty(whole // 32, np.float32),
            "s32": np.empty(whole // 32, np.float32),
            "q256": np.empty(whole, np.int8),
            "d256": np.empty(whole // 256, np.float32),
            "s256": np.empty(whole // SUMMED, np.int16),
            "drawn": np.empty(phases, np.int64),
            "done": np.empty(phases, np.int64),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the work space, without weights, adapter and cache."""
        arrays = (*self._memory.values(), *self._tables.values(), self.logits)
        return sum(a.nbytes for a in arrays)

    def run(self, position: int) -> np.ndarray:
        """Return the logits of the token at `position`, embedded in x, until the next call."""
        if not 0 <= position < self._n_ctx:
            raise ValueError(f"position {position} is outside a context of {self._n_ctx}")
        self._step["at"] = position
        self._memory["drawn"].fill(0)
        self._memory["done"].fill(0)
        threads = min(n_threads(), len(self._memory["scratch"]))
        walk(self._types, self._exact, self._step, threads)
        return self.logits

    def _normed(self, name: str, ws: Sequence[Weight], scale: float = 1.0) -> None:
        """Normalise the stream into the forms that these weights want."""
        hp, write = self._model.hp, self._write
        at = [write.floats(a, hp.n_embd) for a in (self._x, self._bound.norm(name), self._norm)]
        write.phase(kinds.NORM, 1, [(*at, hp.n_embd, hp.rms_eps, scale, write.forms(ws))])

    def _layers(
        self, layer: int, add: bool, **outputs: np.ndarray
    ) -> list[tuple[Weight, LoraPair | None, np.ndarray | None, np.ndarray, bool]]:
        found = []
        for slot, y in outputs.items():
            w, bias = self._model.linear(layer, slot), self._model.bias(layer, slot)
            pair = self._bound.linear_pair(layer, slot)
            found.append((w, pair, None if bias is None else np.ascontiguousarray(bias), y, add))
        return found

    def _add(self, layer: int, slot: str, x: np.ndarray) -> None:
        """Add the branch's last layer to the stream (`block.branch`)."""
        hp, write = self._model.hp, self._write
        if hp.residual_scale == 1 and not hp.has_post_norms:
            write.products(x, self._layers(layer, True, **{slot: self._x}))
            return
        write.products(x, self._layers(layer, False, **{slot: self._branch}))
        w = None
        if hp.has_post_norms:
            w = self._model.vectors[f"blk.{layer}.{POST_NORMS[slot]}"]
        at = [write.floats(a, hp.n_embd) for a in (self._branch, w, self._x)]
        row = (*at, hp.n_embd, hp.rms_eps, hp.residual_scale)
        write.phase(kinds.BRANCH, 1, [row])

    def _attention(self, layer: int) -> None:
        model, hp, write = self._model, self._model.hp, self._write
        outputs = {"q": self._q, "k": self._new_k, "v": self._new_v}
        layers = self._layers(layer, False, **outputs)
        self._normed(f"blk.{layer}.attn_norm.weight", [item[0] for item in layers])
        write.products(self._norm, layers)
        cos = sin = None
        half = rows = 0
        if hp.alibi_max_bias == 0:
            cos, sin = model.rope_tables(self._n_ctx, layer)
            rows, half = cos.shape
        norms: list[np.ndarray | None] = [None, None]
        if hp.has_qk_norm:
            norms = [model.vectors[f"blk.{layer}.{QK_NORMS[slot]}"] for slot in "qk"]
        d, size = hp.head_dim, hp.n_head * hp.head_dim
        kv = hp.n_head_kv * d
        last = model.linear(layer, "o")
        write.phase(kinds.HEADS, hp.n_head_kv, [(
            write.floats(self._q, size), write.floats(self._new_k, kv),
            write.floats(self._new_v, kv), write.floats(norms[0], d), write.floats(norms[1], d),
            hp.rms_eps, write.floats(cos, rows, half), write.floats(sin, rows, half),
            half, hp.rope_pairing == "halves", rows,
            write.floats(self._k[layer], self._n_ctx, hp.n_head_kv, d),
            write.floats(self._v[layer], self._n_ctx, hp.n_head_kv, d),
            self._n_ctx, hp.n_head, hp.n_head_kv, d, hp.attn_scale,
            hp.attn_softcap, hp.window_at(layer),
            write.floats(model.slopes, hp.n_head), write.floats(self._att, size),
            write.forms([last]),
        )])  # fmt: skip
        write.phase(kinds.SCORES, hp.n_head_kv)
        write.phase(kinds.JOIN, 1)
        self._add(layer, "o", self._att)

    def _feed_forward(self, layer: int) -> None:
        hp, write = self._model.hp, self._write
        layers = self._layers(layer, False, gate=self._gate, up=self._up)
        self._normed(f"blk.{layer}.ffn_norm.weight", [item[0] for item in layers])
        write.products(self._norm, layers)
        at = [write.floats(a, hp.n_ff) for a in (self._gate, self._up, self._act)]
        forms = write.forms([self._model.linear(layer, "down")])
        tasks = -(-hp.n_ff // GATE_PART)
        write.phase(kinds.GATE, tasks, [(*at, hp.n_ff, hp.activation == "gelu", forms)])
        self._add(layer, "down", self._act)

    def _output(self) -> None:
        hp, write, head = self._model.hp, self._write, self._head
        self._normed("output_norm.weight", [head], hp.logit_scale)
        pair = self._bound.pair(head.name)
        write.products(self._norm, [(head, pair, None, self.logits, False)])
        if hp.logit_softcap > 0:
            n = len(self.logits)
            row = (write.floats(self.logits, n), n, hp.logit_softcap)
            write.phase(kinds.CAP, -(-n // CAP_PART), [row])


def _types(model: Weights) -> list[int]:
    """Types of the blocks' matrices and of the head."""
    layers = range(model.hp.n_layer)
    blocks = [t for layer in layers for t in model.block_types(layer)]
    return sorted({*blocks, model.output.type_id})


def has_program(model: Weights) -> bool:
    """Whether the model's matrices are of few enough types for one kernel."""
    return len(_types(model)) <= MOST_TYPES
