"""The mixture of experts that replaces a block's feed-forward layer, forward and backward.

    y = sum over the chosen experts e of W_down[e] (w_e act(W_gate[e] h, W_up[e] h))  (+ shared(h))

Here, h is a token's input. `nbllama.ops.experts.router` chooses the experts of each token and their
weights w. The tokens of each expert are gathered, so that each matrix is decoded only once.
Experts are processed in ascending order, and the sum for each token is accumulated in this order.
The result for a token is therefore bit-identical for any number of threads and any batch. Experts
without tokens are skipped, and their matrices are not read.

The router is frozen, but the gradient of the weights w flows through it to the block's input.

In shapes, N is the number of tokens, C is n_embd, E is the number of experts, K is the number of
experts per token, F is the width of an expert, and M is the number of tokens of one expert. Gate
and up `[N K, F]`, sorted by expert, and the arrays listed in `mixture_shapes.kept_shapes` are saved
for the backward pass.
"""

from __future__ import annotations

import numpy as np

from nbllama.arch.experts import Experts
from nbllama.model.parts import BlockParts
from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.experts.gate import expert_gate, expert_gate_grad
from nbllama.ops.experts.router import NO_BIAS, Gating, route, route_grad
from nbllama.ops.experts.rows import Group, Groups, add_rows, gather_rows
from nbllama.ops.linear.linear import Input, LoraPair, hidden_floats, linear, linear_grad
from nbllama.ops.linear.matvec import MOST_TOKENS
from nbllama.ops.linear.panels import NO_PANELS

_TENSORS = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
_SHARED_WEIGHT = "ffn_gate_inp_shexp.weight"


class Mixture:
    """The mixture of experts of one block, applied to one batch."""

    def __init__(self, block: BlockParts, experts: Experts) -> None:
        self.block, self.experts, self.n = block, experts, block.n
        kept, own = block.kept, block.kept.mixture
        size = self.n * experts.used
        self.gate = _flat(kept.gate, size, experts.n_ff)
        self.up = _flat(kept.up, size, experts.n_ff)
        self.scores, self.weights = own["scores"], own["weights"]
        self.chosen = own["chosen"].view(np.int32)
        self._pairs: dict[tuple[str, int], LoraPair | None] = {}
        self.gating = Gating(experts.gating, experts.normed, experts.scale)

    # One expert's linear layers

    def pair(self, name: str, expert: int) -> LoraPair | None:
        """Return the pair of an expert's layer, or None if the layer has no pair.

        Every call returns the same object, because `Input` compares pairs by identity.
        """
        key = name, expert
        if key not in self._pairs:
            found = self.block.bound.expert_pair(self.block.layer, _TENSORS[name], expert)
            self._pairs[key] = found
        return self._pairs[key]

    def bias(self, name: str, expert: int) -> np.ndarray | None:
        """Return the bias of one expert's layer, or None if the layer has no bias."""
        found = self.block.model.vectors.get(self.block.name(f"{_TENSORS[name]}.bias"))
        return None if found is None else found[expert]

    def input(self, x: np.ndarray, expert: int, *names: str) -> Input:
        """Prepare x `[M, n_in]` as the input for these layers of an expert."""
        group, memory = [], self.block.acts.pool("routed_h")
        for name in names:
            pair = self.pair(name, expert)
            size = hidden_floats(len(x), pair.rank) if pair is not None else 0
            group.append((pair, memory[:size]))
            memory = memory[size:]
        return Input(x, self.block.acts.pool("panels"), group)

    def project(self, name: str, expert: int, x: Input, y: np.ndarray) -> None:
        """Compute the output y `[M, n_out]` of an expert's layer, without the bias."""
        w = self.block.model.expert(self.block.layer, _TENSORS[name], expert)
        pair = self.pair(name, expert)
        # `packed` depends on the number of tokens in the batch, not on the tokens of this expert,
        # so that a token's result is bit-identical regardless of the expert's other tokens
        linear(w, pair, x, y, hidden=None, packed=self.n > MOST_TOKENS)

    def project_grad(
        self, name: str, expert: int, dy: np.ndarray, x: Input, *, dx: np.ndarray, add: bool = False
    ) -> None:
        """Set dx `[M, n_in]` to the gradient with respect to x; with `add`, add the gradient to dx.

        The gradients of the layer's pair are added to `bound.grads`.
        """
        w = self.block.model.expert(self.block.layer, _TENSORS[name], expert)
        pair = self.pair(name, expert)
        h = NO_PANELS if pair is None else x.hidden(pair, None)
        buffers = (self.block.acts.pool("grad_panels"), self.block.acts.pool("grad_hidden"))
        linear_grad(w, pair, dy, x.x, hp=h, dx=dx, buffers=buffers, add=add)

    # The shared expert

    def shared_forward(self, source: Input) -> None:
        """Compute gate and up of the shared expert, and the factor for its output."""
        block, own = self.block, self.block.kept.mixture
        block.project("gate_shexp", source, own["gate_shexp"])
        block.project("up_shexp", source, own["up_shexp"])
        w = block.model.vectors.get(block.name(_SHARED_WEIGHT))
        if w is None:
            own["shared_weight"].fill(1)
            return
        z = np.einsum("nc,c->n", source.x, w, optimize=False)
        np.divide(1, 1 + np.exp(-z), out=own["shared_weight"])

    def shared_act(self) -> np.ndarray:
        """Compute the input `[N, F_shared]` for the last matrix of the shared expert."""
        own = self.block.kept.mixture
        act = _flat(self.block.shared("act"), self.n, self.experts.n_ff_shared)
        if self.block.model.vectors.get(self.block.name(_SHARED_WEIGHT)) is None:
            gated(own["gate_shexp"], own["up_shexp"], act, gelu=False)
        else:
            gate, up = own["gate_shexp"], own["up_shexp"]
            expert_gate(gate, up, own["shared_weight"], act, kind="silu")
        return act

    def shared_backward(self, dy: np.ndarray, read: np.ndarray, dread: np.ndarray) -> None:
        """Add to dread `[N, C]` the gradient that flows through the shared expert."""
        block, own = self.block, self.block.kept.mixture
        dact = _flat(block.shared("dact"), self.n, self.experts.n_ff_shared)
        block.project_grad("down_shexp", dy, self.shared_act(), dact)
        gate, up, m = own["gate_shexp"], own["up_shexp"], own["shared_weight"]
        w = block.model.vectors.get(block.name(_SHARED_WEIGHT))
        if w is None:
            gated_grad(dact, gate, up, gelu=False)
        else:
            dm = np.empty_like(m)
            expert_gate_grad(dact, gate, up, m, kind="silu", dw=dm)
            dread += (dm * m * (1 - m))[:, None] * w
        block.project_grad("gate_shexp", gate, read, dread, add=True)
        block.project_grad("up_shexp", up, read, dread, add=True)

    # The whole mixture

    def route(self, source: Input) -> Groups:
        """Choose the experts for each token, and return the tokens grouped by expert."""
        block = self.block
        w, z = block.model.matrix(block.name("ffn_gate_inp")), self.scores
        linear(w, None, source, z, hidden=None)
        bias = block.model.vectors.get(block.name("ffn_gate_inp.bias"))
        if bias is not None:
            z += bias
        block.see("ffn_moe_logits", z)
        select = block.model.vectors.get(block.name("exp_probs_b.bias"), NO_BIAS)
        route(z, self.chosen, self.weights, gating=self.gating, bias=select)
        block.see("ffn_moe_probs", z)
        block.see("ffn_moe_weights", self.weights)
        return Groups(self.chosen, self.experts.total)

    def forward(self, recompute: bool) -> None:
        """Compute the block's output; with `recompute`, compute only what the gradient requires."""
        block, e = self.block, self.experts
        read = block.reads(*block.source())
        block.see("ffn_norm", read)
        names = ("gate_shexp", "up_shexp") if e.n_ff_shared else ()
        source = block.input(read, *names)
        groups = self.route(source)
        if names:
            self.shared_forward(source)
        if recompute:
            for group in groups:
                self._gate_and_up(group, read)
            if names:
                self._shared_hidden()
            return
        if block.bound.load is not None:
            block.bound.load[block.layer] += groups.counts
        out, sorted_weights = block.shared("branch"), groups.sorted(self.weights)
        out.fill(0)
        for group in groups:
            self._gate_and_up(group, read)
            act, y = self._act(group, sorted_weights), self._rows("routed_y", group)
            self.project("down", group.expert, self.input(act, group.expert, "down"), y)
            if (bias := self.bias("down", group.expert)) is not None:
                y += sorted_weights[group.slots, None] * bias
            add_rows(y, group.rows, out)
        block.see("ffn_moe_out", out)
        if names:
            block.project("down_shexp", block.input(self.shared_act(), "down_shexp"), out, add=True)
        block.see("ffn_out", out)
        x = block.acts.x(block.layer + 1, self.n)
        np.multiply(out, np.float32(block.hp.residual_scale), out=x)
        x += block.kept.x_mid
        block.see("l_out", x)

    def backward(self, dx: np.ndarray, dread: np.ndarray) -> None:
        """Compute the gradient dread `[N, C]` of the mixture's input.

        dx is the gradient of the block's output.
        """
        block, e = self.block, self.experts
        dy = block.branch_grad("down", dx)
        read = block.reads(*block.source())
        groups = Groups(self.chosen, e.total)
        sorted_weights = groups.sorted(self.weights)
        dw = np.empty(len(sorted_weights), np.float32)
        dread.fill(0)
        if e.n_ff_shared:
            self.shared_backward(dy, read, dread)
        for group in groups:
            expert, rows, slots = group.expert, group.rows, group.slots
            dyg = gather_rows(dy, rows, self._rows("routed_y", group))
            act = self._act(group, sorted_weights)
            dact = _flat(block.shared("dact"), len(rows), e.n_ff)
            self.project_grad("down", expert, dyg, self.input(act, expert, "down"), dx=dact)
            gate, up = self.gate[slots], self.up[slots]
            expert_gate_grad(dact, gate, up, sorted_weights[slots], kind=e.kind, dw=dw[slots])
            if (bias := self.bias("down", expert)) is not None:
                dw[slots] += np.einsum("mc,c->m", dyg, bias, optimize=False)
            x = gather_rows(read, rows, self._rows("routed_x", group))
            source, dxg = self.input(x, expert, "gate", "up"), self._rows("routed_dx", group)
            self.project_grad("gate", expert, gate, source, dx=dxg)
            self.project_grad("up", expert, up, source, dx=dxg, add=True)
            add_rows(dxg, rows, dread)
        dz = np.empty_like(self.scores)
        route_grad(groups.unsorted(dw, e.used), self.scores, self.chosen, dz, gating=self.gating)
        block.see_grad("ffn_moe_logits", dz)
        buffers = (block.acts.pool("grad_panels"), block.acts.pool("grad_hidden"))
        w = block.model.matrix(block.name("ffn_gate_inp"))
        linear_grad(w, None, dz, read, hp=NO_PANELS, dx=dread, buffers=buffers, add=True)

    def _rows(self, name: str, group: Group) -> np.ndarray:
        return self.block.shared(name)[: len(group.rows)]

    def _gate_and_up(self, group: Group, read: np.ndarray) -> None:
        x = gather_rows(read, group.rows, self._rows("routed_x", group))
        source = self.input(x, group.expert, "gate", "up")
        for name, out in (("gate", self.gate), ("up", self.up)):
            y = out[group.slots]
            self.project(name, group.expert, source, y)
            if (bias := self.bias(name, group.expert)) is not None:
                y += bias

    def _act(self, group: Group, sorted_weights: np.ndarray) -> np.ndarray:
        """Compute the input `[M, F]` for the last matrix of an expert."""
        slots = group.slots
        act = _flat(self.block.shared("act"), len(group.rows), self.experts.n_ff)
        expert_gate(
            self.gate[slots], self.up[slots], sorted_weights[slots], act, kind=self.experts.kind
        )
        return act

    def _shared_hidden(self) -> None:
        """Compute the LoRA product h of `down_shexp`, which the gradients of its pair require."""
        block, pair = self.block, self.block.pairs["down_shexp"]
        if pair is not None:
            source = block.input(self.shared_act(), "down_shexp")
            memory = block.kept.h_memory.get("down_shexp")
            block.kept.h["down_shexp"] = source.hidden(pair, memory)


def _flat(a: np.ndarray, n: int, width: int) -> np.ndarray:
    """Return the first elements of `a` as a view `[n, width]`."""
    return a.reshape(-1)[: n * width].reshape(n, width)
