"""The phases of a token's program for a mixture of experts (`nbllama.model.mixture`).

The K chosen experts are sorted by index. In all arrays of this module, k is the position of a
chosen expert in this order. The activations of the chosen experts, followed by the activation of
the shared expert, form one input, `act`.
"""

from __future__ import annotations

import numpy as np

from nbllama.arch.experts import Experts
from nbllama.generation.token_parts import ProgramParts
from nbllama.generation.token_writer import Layer
from nbllama.ops.experts.gate import CODES as GATES
from nbllama.ops.experts.router import CODES as GATINGS
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.mixture_tasks import SUM_PART
from nbllama.quants import as_readonly

TENSORS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def act_floats(experts: Experts) -> int:
    """Return the number of floats in `act`."""
    return _shared_at(experts) + experts.n_ff_shared


def _shared_at(experts: Experts) -> int:
    """Return the start of the shared expert in `act`, which is an int8 block boundary."""
    return -(-experts.used * experts.n_ff // 256) * 256


class TokenMixture:
    """The mixtures of all blocks, and their shared memory.

    `chosen` int32 `[n_layer, K]` contains the indices of the experts chosen for the newest token.
    """

    def __init__(self, parts: ProgramParts, experts: Experts) -> None:
        self._parts, self._experts = parts, experts
        hp, e = parts.hp, experts
        self.chosen = np.zeros((hp.n_layer, e.used), np.int32)
        self._checked = np.zeros((hp.n_layer, e.total), np.bool_)
        self._checked[: e.first] = True
        self._layers = np.arange(hp.n_layer)[:, None]
        self._z, self._weights = np.empty(e.total, np.float32), np.empty(e.used, np.float32)
        self._gate, self._up = (np.empty((e.used, e.n_ff), np.float32) for _ in range(2))
        self._act = np.empty(act_floats(e), np.float32)
        self._y = np.empty((e.used, hp.n_embd), np.float32)
        if e.n_ff_shared:
            self._shared_gate, self._shared_up = (
                np.empty(e.n_ff_shared, np.float32) for _ in range(2)
            )
            self._shared_y = np.empty(hp.n_embd, np.float32)
            self._shared_weight = np.ones(1, np.float32)

    def check_chosen(self) -> None:
        """Check the weights of experts that are used for the first time. Raises `GGUFError`."""
        new = ~self._checked[self._layers, self.chosen]
        if not new.any():
            return
        for layer, k in np.argwhere(new).tolist():
            expert = int(self.chosen[layer, k])
            for tensor in TENSORS:
                self._parts.model.expert(layer, tensor, expert)
            self._checked[layer, expert] = True

    def feed_forward(self, layer: int) -> None:
        """Add the phases that compute a block's mixture and add it to the residual stream."""
        parts, e, write = self._parts, self._experts, self._parts.write
        hp, vectors, n = parts.hp, parts.model.vectors, parts.hp.n_embd
        router = parts.model.matrix(f"blk.{layer}.ffn_gate_inp")
        bias = vectors.get(f"blk.{layer}.ffn_gate_inp.bias")
        first = [Layer(router, None, bias, self._z)]
        if e.n_ff_shared:
            outputs = {"gate_shexp": self._shared_gate, "up_shexp": self._shared_up}
            first += parts.layers(layer, outputs)
        gates = self._experts_layers(layer, "ffn_gate_exps", self._gate, parts.norm, 0)
        ups = self._experts_layers(layer, "ffn_up_exps", self._up, parts.norm, 0)
        name = hp.ffn_norm and f"blk.{layer}.{hp.ffn_norm}"
        parts.reads(name, [item.w for item in (*first, gates[0], ups[0])])
        write.products(parts.norm, first)
        self._route(layer)
        both = [item for pair in zip(gates, ups, strict=True) for item in pair]
        write.products(parts.norm, both)
        last = self._experts_layers(layer, "ffn_down_exps", self._y, self._act, e.n_ff)
        if e.n_ff_shared:
            at = _shared_at(e)
            (shared,) = parts.layers(layer, {"down_shexp": self._shared_y})
            last.append(shared._replace(x=self._act[at:], at=at))
        self._activations(last)
        write.products(self._act[: e.n_ff], last)
        of_experts = vectors.get(f"blk.{layer}.ffn_down_exps.bias")
        tasks = -(-n // SUM_PART)
        write.phase(kinds.SUM, tasks, [(
            write.floats(self._y, e.used, n), e.used, write.floats(parts.x, n), n,
            hp.residual_scale, write.floats(of_experts, e.total, n), e.total,
            write.ints(self.chosen[layer], e.used), write.floats(self._weights, e.used),
            write.floats(self._shared_y, n) if e.n_ff_shared else 0,
        )])  # fmt: skip

    def _experts_layers(
        self, layer: int, tensor: str, y: np.ndarray, x: np.ndarray, step: int
    ) -> list[Layer]:
        """Return a layer for each chosen expert; layer k reads x from index `k * step`."""
        parts, e = self._parts, self._experts
        name = f"blk.{layer}.{tensor}.weight"
        of = parts.model.experts[name][0]
        raw = as_readonly(parts.model.gguf.data(name)).reshape(-1)
        w = Weight(name, of.type_id, raw, of.shape)
        pair = parts.bound.pair(name)
        bias = parts.model.vectors.get(f"blk.{layer}.{tensor}.bias")
        if tensor == "ffn_down_exps":
            bias = None  # added in the sum, multiplied by the expert's weight
        n_in = of.shape[1]
        return [
            Layer(
                w, pair, bias, y[k], x=x[k * step : k * step + n_in], at=k * step,
                chosen=self.chosen[layer, k : k + 1], experts=e.total,
            )
            for k in range(e.used)
        ]  # fmt: skip

    def _route(self, layer: int) -> None:
        parts, e, write = self._parts, self._experts, self._parts.write
        vectors, n = parts.model.vectors, parts.hp.n_embd
        select = vectors.get(f"blk.{layer}.exp_probs_b.bias")
        gate = vectors.get(f"blk.{layer}.ffn_gate_inp_shexp.weight") if e.n_ff_shared else None
        write.phase(kinds.ROUTE, 1, [(
            write.floats(self._z, e.total), write.floats(select, e.total), e.total, e.used,
            GATINGS[e.gating], e.normed, e.scale, write.ints(self.chosen[layer], e.used),
            write.floats(self._weights, e.used), write.floats(gate, n),
            write.floats(parts.norm, n), n,
            write.floats(self._shared_weight, 1) if gate is not None else 0,
        )])  # fmt: skip

    def _activations(self, last: list[Layer]) -> None:
        """Add the phase that computes `act`, with one task per expert."""
        e, write = self._experts, self._parts.write
        act = write.floats(self._act, len(self._act))
        forms = write.forms([last[0].w])
        rows: list[tuple[float, ...]] = [
            (
                write.floats(self._gate[k], e.n_ff), write.floats(self._up[k], e.n_ff), act,
                e.n_ff, k * e.n_ff, write.floats(self._weights[k : k + 1], 1), GATES[e.kind], forms,
            )
            for k in range(e.used)
        ]  # fmt: skip
        if n := e.n_ff_shared:
            rows.append((
                write.floats(self._shared_gate, n), write.floats(self._shared_up, n), act, n,
                _shared_at(e), write.floats(self._shared_weight, 1), GATES["silu"],
                write.forms([last[-1].w]),
            ))  # fmt: skip
        write.phase(kinds.EXPERT, len(rows), rows)
