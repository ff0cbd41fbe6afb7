"""The program that runs one token through a model; its phases are written once and then reused.

`nbllama.model.block` does the same computation for any number of tokens. Each line of that module
corresponds to a row in a table (`nbllama.ops.token`) that the threads read. Models differ only in
these rows.
"""

from __future__ import annotations

import math

import numpy as np

from nbllama.generation.cache import Cache
from nbllama.generation.states import States
from nbllama.generation.token_mixers import TokenMixers
from nbllama.generation.token_mixture import TokenMixture, act_floats
from nbllama.generation.token_parts import ProgramParts
from nbllama.generation.token_writer import Layer, Writer
from nbllama.model.block import QK_NORMS
from nbllama.model.bound import Bound
from nbllama.model.per_layer import OUT_SCALE, POST_NORM
from nbllama.model.size_shapes import head_shapes
from nbllama.model.weights import Weights
from nbllama.ops.attention.few import CHUNK
from nbllama.ops.op import check_output
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.run import MOST_TYPES, n_threads, walk
from nbllama.ops.token.tasks import CAP_PART, GATE_PART
from nbllama.ops.ungated import CODES
from nbllama.quants.dot import SUMMED


class TokenProgram(ProgramParts):
    """A program for single tokens, with one adapter and one KV cache (`generation.cache.Cache`).

    `states` contains the states of blocks without attention; each run updates them. `run` reads the
    token's embedding from `x` (`[C]`), overwrites it with the output of the last block, and writes
    the logits to `logits` (`[V]`). `rows` `[L, P]` contains the token's per-block embeddings, if
    the model has any. Without `exact`, weights whose type has an integer dot product are multiplied
    by int8 blocks of the input, as in llama.cpp.
    """

    def __init__(
        self,
        model: Weights,
        bound: Bound,
        *,
        k: Cache,
        v: Cache,
        x: np.ndarray,
        exact: bool,
        rows: np.ndarray | None = None,
        states: States | None = None,
    ) -> None:
        """Build the program for one token.

        Raises ValueError if `has_program` is False for the model, or if the arrays do not match the
        model.
        """
        hp = model.hp
        self._head = model.matrix(model.output.name.removesuffix(".weight"))
        types = _types(model)
        if len(types) > MOST_TYPES:
            raise ValueError(
                f"a token program supports at most {MOST_TYPES} weight types, not {len(types)}"
            )
        super().__init__(model, bound, Writer({t: i for i, t in enumerate(types)}, exact), x)
        layers = hp.attention_layers
        if len(k) != len(layers) or len(v) != len(layers):
            raise ValueError(
                f"token program: expected keys and values for {len(layers)} blocks with attention, "
                f"not {len(k)} and {len(v)}"
            )
        self._k, self._v = (dict(zip(layers, cache, strict=True)) for cache in (k, v))
        self._n_ctx = len(k[0])
        for layer in layers:
            of = hp.sizes_at(layer)
            for cache in (self._k[layer], self._v[layer]):
                shape = (self._n_ctx, of.n_head_kv, of.head_dim)
                check_output("token program", "cache", cache, shape)
        check_output("token program", "x", x, (hp.n_embd,))
        self.logits = np.empty(self._head.shape[0], np.float32)
        n_q, n_kv = (math.prod(shape) for shape in head_shapes(hp))
        self._q, self._att = np.empty(n_q, np.float32), np.empty(n_q, np.float32)
        self._new_k, self._new_v = np.empty(n_kv, np.float32), np.empty(n_kv, np.float32)
        self._gate, self._up, self._act = (np.empty(hp.ff_width, np.float32) for _ in range(3))
        self._q_gate = np.empty((hp.n_head, 2, hp.head_dim) if hp.attn_gate else 0, np.float32)
        self._mixture = TokenMixture(self, hp.experts) if hp.experts is not None else None
        self._mixers = TokenMixers(self, states) if states is not None else None
        self._rows = np.empty((0, 0), np.float32) if rows is None else rows
        if hp.n_per_layer:
            check_output("token program", "rows", self._rows, (hp.n_layer, hp.n_per_layer))
            self._per_layer = np.empty((2, hp.n_per_layer), np.float32)
        self._temper: np.ndarray | None = None
        if hp.temperature is not None:
            self._temper = hp.temperature.at(np.arange(self._n_ctx))
        for layer in range(hp.n_layer):
            if hp.mixer_at(layer) == "attention":
                self._attention(layer)
            elif self._mixers is None:
                raise ValueError("token program: blocks without attention require `states`")
            else:
                self._mixers.add(layer)
            if self._mixture is not None and hp.experts_at(layer) is not None:
                self._mixture.feed_forward(layer)
            else:
                self._feed_forward(layer)
            self._after(layer)
        self._output()
        self._tables = self.write.tables()
        self._types, self._exact = types, exact
        widest = [hp.n_embd, hp.ff_width, n_q, hp.n_per_layer]
        widest += [act_floats(hp.experts)] if hp.experts is not None else []
        widest += [hp.delta.n_values] if hp.delta is not None else []
        self._memory = self._workspace(max(widest))
        self._step = np.zeros(1, kinds.STEP)
        for name, array in (self._tables | self._memory).items():
            self._step[name] = array.ctypes.data
        self._step["n_phases"] = len(self._tables["program"])
        self._step["most_rows"] = max(map(len, self._tables.values()))
        self._step["width"] = len(self._memory["q32"])
        self._step["chunks"] = len(self._memory["scores"])

    def _workspace(self, widest: int) -> dict[str, np.ndarray]:
        """Allocate the arrays that a `STEP` points to, and return them by name."""
        hp, chunks = self.model.hp, -(-self._n_ctx // CHUNK)
        whole = -(-widest // 256) * 256
        phases = len(self._tables["program"])
        return {
            "scores": np.empty((chunks, hp.n_head, CHUNK), np.float32),
            "found": np.empty((chunks, hp.n_head, 2 + head_shapes(hp)[0][1]), np.float32),
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
        """Size of the work space in bytes, excluding the weights, the adapter and the cache."""
        arrays = (*self._memory.values(), *self._tables.values(), self.logits)
        return sum(a.nbytes for a in arrays)

    def run(self, position: int) -> np.ndarray:
        """Return the logits after the token in x at `position`; the next call overwrites them."""
        if not 0 <= position < self._n_ctx:
            raise ValueError(f"position {position} is outside the context of {self._n_ctx} tokens")
        self._step["at"] = position
        self._memory["drawn"].fill(0)
        self._memory["done"].fill(0)
        threads = min(n_threads(), len(self._memory["scratch"]))
        if self._mixers is not None:
            self._mixers.renew(self._tables)
        walk(self._types, self._exact, self._step, threads)
        if self._mixture is not None:
            self._mixture.check_chosen()
        return self.logits

    def _attention(self, layer: int) -> None:
        model, hp, write = self.model, self.model.hp, self.write
        of = hp.sizes_at(layer)
        d, size = of.head_dim, hp.n_head * of.head_dim
        kv = of.n_head_kv * d
        q, new_k, new_v = self._q[:size], self._new_k[:kv], self._new_v[:kv]
        every = {"q": self._q_gate.reshape(-1) if hp.attn_gate else q, "k": new_k, "v": new_v}
        present = model.linears_at(layer)
        outputs = {name: y for name, y in every.items() if name in present}
        own, values = "k" in present, new_v if "v" in present else new_k
        if hp.side_by_side:
            outputs |= self._feed_forward_outputs(layer)
        layers = self.layers(layer, outputs)
        self.reads(hp.attn_norm and f"blk.{layer}.{hp.attn_norm}", [item.w for item in layers])
        write.products(self.norm, layers)
        cos = sin = None
        half = rows = 0
        if tables := model.rope_tables(self._n_ctx, layer):
            cos, sin = tables
            rows, half = cos.shape
        heads = {"q": q, "k": new_k} if own else {"q": q}
        norms = {name: self._head_norm(layer, name, x) for name, x in heads.items()}
        last = model.linear(layer, "o")
        ones = np.ones(d, np.float32) if hp.values_normed else None
        write.phase(kinds.HEADS, of.n_head_kv, [(
            write.floats(q, size), write.floats(new_k if own else None, kv),
            write.floats(values, kv), write.floats(norms["q"], d),
            write.floats(norms.get("k"), d),
            hp.qk_norm_last, hp.rms_eps, write.floats(self._temper, self._n_ctx),
            write.floats(ones, d), write.floats(cos, rows, half), write.floats(sin, rows, half),
            half, hp.rope_pairing == "halves", rows,
            write.floats(self._k[of.kv_from], self._n_ctx, of.n_head_kv, d),
            write.floats(self._v[of.kv_from], self._n_ctx, of.n_head_kv, d),
            self._n_ctx, hp.n_head, of.n_head_kv, d, hp.attn_scale,
            hp.attn_softcap, hp.window_at(layer),
            write.floats(model.slopes, hp.n_head), write.floats(self._att[:size], size),
            write.forms([last]),
            write.floats(self._q_gate, hp.n_head, 2, d) if hp.attn_gate else 0,
            write.floats(model.vectors.get(f"blk.{layer}.attn_sinks.weight"), hp.n_head),
        )])  # fmt: skip
        write.phase(kinds.SCORES, of.n_head_kv)
        write.phase(kinds.JOIN, 1)
        self.add(layer, "o", self._att[:size])

    def _head_norm(self, layer: int, name: str, x: np.ndarray) -> np.ndarray | None:
        """Return the weights of the per-head norm of queries or keys, or None.

        For a norm over all heads, add a separate phase and return None.
        """
        if not self.model.hp.has_qk_norm:
            return None
        w = self.model.vectors[f"blk.{layer}.{QK_NORMS[name]}"]
        if len(w) == self.model.hp.sizes_at(layer).head_dim:
            return w
        at = [self.write.floats(a, len(x)) for a in (x, w, None, x)]
        self.write.phase(kinds.NORM, 1, [(*at, len(x), 0, self.model.hp.rms_eps, 1.0, 0)])
        return None

    def _feed_forward_outputs(self, layer: int) -> dict[str, np.ndarray]:
        n = self.model.hp.sizes_at(layer).n_ff
        gate = {"gate": self._gate[:n]} if self.model.hp.gated else {}
        return gate | {"up": self._up[:n]}

    def _feed_forward(self, layer: int) -> None:
        hp, write = self.model.hp, self.write
        if not hp.side_by_side:
            layers = self.layers(layer, self._feed_forward_outputs(layer))
            self.reads(hp.ffn_norm and f"blk.{layer}.{hp.ffn_norm}", [item.w for item in layers])
            write.products(self.norm, layers)
        forms = write.forms([self.model.linear(layer, "down")])
        n = hp.sizes_at(layer).n_ff
        tasks = -(-n // GATE_PART)
        gate, up, act = (write.floats(a[:n], n) for a in (self._gate, self._up, self._act))
        if hp.gated:
            write.phase(kinds.GATE, tasks, [(gate, up, act, n, hp.activation == "gelu", forms)])
        else:
            code, numbers = CODES[hp.activation], self.model.xielu(layer)
            write.phase(kinds.ACT, tasks, [(up, act, n, code, *numbers, forms)])
        self.add(layer, "down", self._act[:n])

    def _after(self, layer: int) -> None:
        """Add the phases of per-block embeddings, after the feed-forward part (`per_layer`)."""
        hp, write, vectors = self.model.hp, self.write, self.model.vectors
        if n := hp.n_per_layer:
            gate, act = self._per_layer
            layers = self.layers(layer, {"inp_gate": gate})
            self.reads("", [layers[0].w])
            write.products(self.norm, layers)
            forms = write.forms([self.model.linear(layer, "proj")])
            at = [write.floats(a, n) for a in (gate, self._rows[layer], act)]
            write.phase(kinds.GATE, -(-n // GATE_PART), [(*at, n, True, forms)])
            write.products(act, self.layers(layer, {"proj": self._branch}))
            w = vectors[f"blk.{layer}.{POST_NORM}"]
            at = [write.floats(a, hp.n_embd) for a in (self._branch, w, self.x)]
            write.phase(kinds.BRANCH, 1, [(*at, hp.n_embd, hp.rms_eps, 1.0)])
        if (scale := vectors.get(f"blk.{layer}.{OUT_SCALE}")) is not None:
            x = write.floats(self.x, hp.n_embd)
            row = (x, 0, 0, x, hp.n_embd, False, hp.rms_eps, scale[0], 0)
            write.phase(kinds.NORM, 1, [row])

    def _output(self) -> None:
        hp, write, head = self.model.hp, self.write, self._head
        self.reads(hp.output_norm, [head], hp.logit_scale)
        pair = self.bound.pair(head.name)
        write.products(self.norm, [Layer(head, pair, self.model.output_bias, self.logits)])
        if hp.logit_softcap > 0:
            n = len(self.logits)
            row = (write.floats(self.logits, n), n, hp.logit_softcap)
            write.phase(kinds.CAP, -(-n // CAP_PART), [row])


def _types(model: Weights) -> list[int]:
    """Return the types of the matrices and routers in all blocks, and of the head."""
    layers = range(model.hp.n_layer)
    blocks = [t for layer in layers for t in model.block_types(layer)]
    routers = (model.matrices.get(f"blk.{layer}.ffn_gate_inp.weight") for layer in layers)
    found = {w.type_id for w in routers if w is not None}
    return sorted({*blocks, *found, model.output.type_id})


def has_program(model: Weights) -> bool:
    """Return whether the model can be run as a program.

    This is not possible if there are too many weight types, if experts run in parallel with
    attention, or if the head size of a delta net is odd.
    """
    hp = model.hp
    fits = not (hp.side_by_side and hp.experts is not None)
    even = hp.delta is None or hp.delta.size % 2 == 0
    return fits and even and len(_types(model)) <= MOST_TYPES
