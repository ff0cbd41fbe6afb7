"""The program that runs one token through a model: all phases, written once.

`nbllama.model.block` computes the same for any number of tokens. Here each of its lines is a row of
a table (`nbllama.ops.token`) that the threads read. Models differ only in the rows.
"""

from __future__ import annotations

import numpy as np

from nbllama.generation.states import States
from nbllama.generation.token_mixers import TokenMixers
from nbllama.generation.token_mixture import TokenMixture, act_floats
from nbllama.generation.token_parts import ProgramParts
from nbllama.generation.token_writer import Layer, Writer
from nbllama.model.block import QK_NORMS
from nbllama.model.bound import Bound
from nbllama.model.weights import Weights
from nbllama.ops.attention.few import CHUNK
from nbllama.ops.op import check_output
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.run import MOST_TYPES, n_threads, walk
from nbllama.ops.token.tasks import CAP_PART, GATE_PART
from nbllama.ops.ungated import CODES
from nbllama.quants.dot import SUMMED


class TokenProgram(ProgramParts):
    """The step of one token, for one adapter and one KV cache.

    `k` and `v` are `[L, n_ctx, G, D]` for L blocks with attention. `states` are those of the other
    blocks; a run replaces them by those after the token.

    `run` reads the token's embedding in `x` (`[C]`), which becomes the last block's output, and
    leaves the logits in `logits` (`[V]`). Without `exact`, weights whose type has an integer dot
    product get their input in int8 blocks, as in llama.cpp.
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
        states: States | None = None,
    ) -> None:
        """Build the program of one token.

        Raises ValueError for a model without `has_program`, or for arrays that do not fit.
        """
        hp = model.hp
        self._head = model.matrix(model.output.name.removesuffix(".weight"))
        types = _types(model)
        if len(types) > MOST_TYPES:
            raise ValueError(f"a token's program has at most {MOST_TYPES} types, not {len(types)}")
        super().__init__(model, bound, Writer({t: i for i, t in enumerate(types)}, exact), x)
        self._k, self._v, self._n_ctx = k, v, k.shape[1]
        for cache in (k, v):
            shape = (len(hp.attention_layers), self._n_ctx, hp.n_head_kv, hp.head_dim)
            check_output("token program", "cache", cache, shape)
        check_output("token program", "x", x, (hp.n_embd,))
        self.logits = np.empty(self._head.shape[0], np.float32)
        n_q, n_kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
        self._q, self._att = np.empty(n_q, np.float32), np.empty(n_q, np.float32)
        self._new_k, self._new_v = np.empty(n_kv, np.float32), np.empty(n_kv, np.float32)
        self._gate, self._up, self._act = (np.empty(hp.n_ff, np.float32) for _ in range(3))
        self._q_gate = np.empty((hp.n_head, 2, hp.head_dim) if hp.attn_gate else 0, np.float32)
        self._mixture = TokenMixture(self, hp.experts) if hp.experts is not None else None
        self._mixers = TokenMixers(self, states) if states is not None else None
        self._temper: np.ndarray | None = None
        if hp.temperature is not None:
            self._temper = hp.temperature.at(np.arange(self._n_ctx))
        for layer in range(hp.n_layer):
            if hp.mixer_at(layer) == "attention":
                self._attention(layer)
            elif self._mixers is None:
                raise ValueError("token program: a block without attention needs its state")
            else:
                self._mixers.add(layer)
            if self._mixture is not None and hp.experts_at(layer) is not None:
                self._mixture.feed_forward(layer)
            else:
                self._feed_forward(layer)
        self._output()
        self._tables = self.write.tables()
        self._types, self._exact = types, exact
        widest = [hp.n_embd, hp.n_ff, n_q]
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
        """Allocate the memory of `STEP`, by name."""
        hp, chunks = self.model.hp, -(-self._n_ctx // CHUNK)
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
        if self._mixers is not None:
            self._mixers.renew(self._tables)
        walk(self._types, self._exact, self._step, threads)
        if self._mixture is not None:
            self._mixture.check_chosen()
        return self.logits

    def _attention(self, layer: int) -> None:
        model, hp, write = self.model, self.model.hp, self.write
        q = self._q_gate.reshape(-1) if hp.attn_gate else self._q
        outputs = {"q": q, "k": self._new_k, "v": self._new_v}
        if hp.side_by_side:
            outputs |= self._feed_forward_outputs()
        layers = self.layers(layer, outputs)
        self.reads(hp.attn_norm and f"blk.{layer}.{hp.attn_norm}", [item.w for item in layers])
        write.products(self.norm, layers)
        cos = sin = None
        half = rows = 0
        if tables := model.rope_tables(self._n_ctx, layer):
            cos, sin = tables
            rows, half = cos.shape
        norms = [self._head_norm(layer, *item) for item in (("q", self._q), ("k", self._new_k))]
        d, size = hp.head_dim, hp.n_head * hp.head_dim
        kv = hp.n_head_kv * d
        last, at = model.linear(layer, "o"), hp.attention_layers.index(layer)
        write.phase(kinds.HEADS, hp.n_head_kv, [(
            write.floats(self._q, size), write.floats(self._new_k, kv),
            write.floats(self._new_v, kv), write.floats(norms[0], d), write.floats(norms[1], d),
            hp.qk_norm_last, hp.rms_eps, write.floats(self._temper, self._n_ctx),
            write.floats(cos, rows, half), write.floats(sin, rows, half),
            half, hp.rope_pairing == "halves", rows,
            write.floats(self._k[at], self._n_ctx, hp.n_head_kv, d),
            write.floats(self._v[at], self._n_ctx, hp.n_head_kv, d),
            self._n_ctx, hp.n_head, hp.n_head_kv, d, hp.attn_scale,
            hp.attn_softcap, hp.window_at(layer),
            write.floats(model.slopes, hp.n_head), write.floats(self._att, size),
            write.forms([last]),
            write.floats(self._q_gate, hp.n_head, 2, d) if hp.attn_gate else 0,
            write.floats(model.vectors.get(f"blk.{layer}.attn_sinks.weight"), hp.n_head),
        )])  # fmt: skip
        write.phase(kinds.SCORES, hp.n_head_kv)
        write.phase(kinds.JOIN, 1)
        self.add(layer, "o", self._att)

    def _head_norm(self, layer: int, name: str, x: np.ndarray) -> np.ndarray | None:
        """Return the norm of each head of queries or keys; a norm of all heads is a phase."""
        if not self.model.hp.has_qk_norm:
            return None
        w = self.model.vectors[f"blk.{layer}.{QK_NORMS[name]}"]
        if len(w) == self.model.hp.head_dim:
            return w
        at = [self.write.floats(a, len(x)) for a in (x, w, None, x)]
        self.write.phase(kinds.NORM, 1, [(*at, len(x), 0, self.model.hp.rms_eps, 1.0, 0)])
        return None

    def _feed_forward_outputs(self) -> dict[str, np.ndarray]:
        gate = {"gate": self._gate} if self.model.hp.gated else {}
        return gate | {"up": self._up}

    def _feed_forward(self, layer: int) -> None:
        hp, write = self.model.hp, self.write
        if not hp.side_by_side:
            layers = self.layers(layer, self._feed_forward_outputs())
            self.reads(hp.ffn_norm and f"blk.{layer}.{hp.ffn_norm}", [item.w for item in layers])
            write.products(self.norm, layers)
        forms = write.forms([self.model.linear(layer, "down")])
        tasks = -(-hp.n_ff // GATE_PART)
        gate, up, act = (write.floats(a, hp.n_ff) for a in (self._gate, self._up, self._act))
        if hp.gated:
            write.phase(
                kinds.GATE, tasks, [(gate, up, act, hp.n_ff, hp.activation == "gelu", forms)]
            )
        else:
            code, numbers = CODES[hp.activation], self.model.xielu(layer)
            write.phase(kinds.ACT, tasks, [(up, act, hp.n_ff, code, *numbers, forms)])
        self.add(layer, "down", self._act)

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
    """Return the types of the blocks' matrices, of their routers and of the head."""
    layers = range(model.hp.n_layer)
    blocks = [t for layer in layers for t in model.block_types(layer)]
    routers = (model.matrices.get(f"blk.{layer}.ffn_gate_inp.weight") for layer in layers)
    found = {w.type_id for w in routers if w is not None}
    return sorted({*blocks, *found, model.output.type_id})


def has_program(model: Weights) -> bool:
    """Return whether a program can compute the model.

    It cannot for too many types, for experts next to attention, and for heads of a delta net with
    an odd number of values.
    """
    hp = model.hp
    fits = not (hp.side_by_side and hp.experts is not None)
    even = hp.delta is None or hp.delta.size % 2 == 0
    return fits and even and len(_types(model)) <= MOST_TYPES
