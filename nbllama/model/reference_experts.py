"""The mixture of experts in the reference model, which processes one expert at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nbllama.arch.experts import Experts
from nbllama.ops.activation import gated_grad_ref, gated_ref
from nbllama.ops.experts.gate import expert_gate_grad_ref, expert_gate_ref
from nbllama.ops.experts.router import NO_BIAS, Gating, route_grad_ref, route_ref
from nbllama.ops.linear.lora import lora_grad_ref, lora_ref

if TYPE_CHECKING:
    from nbllama.model.reference_ops import Operations


class ReferenceMixture:
    """The mixture of experts of one block, in one pass."""

    def __init__(self, run: Operations, layer: int, experts: Experts) -> None:
        self.run, self.layer, self.e = run, layer, experts
        self.gating = Gating(experts.gating, experts.normed, experts.scale)

    def weight(self, name: str) -> np.ndarray | None:
        """Return a tensor of the block, or None if the block does not have it."""
        return self.run.tensors.get(f"blk.{self.layer}.{name}")

    def linear(self, x: np.ndarray, name: str, expert: int) -> np.ndarray:
        """Apply a matrix of one expert, including its pair and its bias."""
        base = f"blk.{self.layer}.ffn_{name}_exps"
        y: np.ndarray = x @ self.run.tensors[f"{base}.weight"][expert].T
        if pair := self.run.pair(base):
            y = y + lora_ref(x, pair[0][expert], pair[1][expert], self.run.scale)
        bias = self.run.tensors.get(f"{base}.bias")
        return y if bias is None else y + bias[expert]

    def linear_grad(self, dy: np.ndarray, x: np.ndarray, name: str, expert: int) -> np.ndarray:
        """Return the gradient with respect to x; add the gradients of the expert's pair."""
        run, base = self.run, f"blk.{self.layer}.ffn_{name}_exps"
        dx: np.ndarray = dy @ run.tensors[f"{base}.weight"][expert]
        if pair := run.pair(base):
            a, b = pair[0][expert], pair[1][expert]
            through, da, db = lora_grad_ref(dy, x, a, b, scale=run.scale)
            run.grads[f"{base}.weight.lora_a"][expert] += da
            run.grads[f"{base}.weight.lora_b"][expert] += db
            dx = dx + through
        return dx

    def forward(self, h: np.ndarray) -> np.ndarray:
        """Compute the output of the experts, which is added to the stream, for input h `[N, C]`."""
        i, keep, kept = self.layer, self.run.keep, self.run.kept
        z = h @ self.run.tensors[f"blk.{i}.ffn_gate_inp.weight"].T
        if (bias := self.weight("ffn_gate_inp.bias")) is not None:
            z = z + bias
        z = keep(f"ffn_moe_logits-{i}", z)
        select = self.weight("exp_probs_b.bias")
        p, chosen, w = route_ref(z, self.e.used, self.gating, NO_BIAS if select is None else select)
        kept[f"chosen-{i}"] = chosen
        keep(f"ffn_moe_probs-{i}", p)
        w = keep(f"ffn_moe_weights-{i}", w)
        out = np.zeros_like(h)
        for expert in range(self.e.total):
            rows, k = np.nonzero(chosen == expert)
            gate, up = (self.linear(h[rows], name, expert) for name in ("gate", "up"))
            act = expert_gate_ref(gate, up, np.ones(len(rows)), self.e.kind)
            out[rows] += w[rows, k, None] * self.linear(act, "down", expert)
        out = keep(f"ffn_moe_out-{i}", out)
        if self.e.n_ff_shared:
            out = out + self.shared(h)
        return out

    def shared(self, h: np.ndarray) -> np.ndarray:
        """Compute the output of the shared expert, multiplied by its weight."""
        i, run = self.layer, self.run
        gate, up = run.linear(h, i, "gate_shexp"), run.linear(h, i, "up_shexp")
        run.kept[f"shared-{i}"] = np.stack([gate, up])
        y = run.linear(gated_ref(gate, up, False), i, "down_shexp")
        w = self.weight("ffn_gate_inp_shexp.weight")
        return y if w is None else y / (1 + np.exp(-(h @ w)))[:, None]

    def backward(self, dy: np.ndarray, h: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to h, given the gradient dy of the output."""
        i, run, kept = self.layer, self.run, self.run.kept
        dh, chosen, w = np.zeros_like(h), kept[f"chosen-{i}"], kept[f"ffn_moe_weights-{i}"]
        dw = np.zeros_like(w)
        for expert in range(self.e.total):
            rows, k = np.nonzero(chosen == expert)
            x, ones = h[rows], np.ones(len(rows))
            gate, up = (self.linear(x, name, expert) for name in ("gate", "up"))
            act = expert_gate_ref(gate, up, ones, self.e.kind)
            dw[rows, k] = (dy[rows] * self.linear(act, "down", expert)).sum(axis=1)
            dact = self.linear_grad(w[rows, k, None] * dy[rows], act, "down", expert)
            dgate, dup, _ = expert_gate_grad_ref(dact, gate, up, ones, kind=self.e.kind)
            dh[rows] += self.linear_grad(dgate, x, "gate", expert)
            dh[rows] += self.linear_grad(dup, x, "up", expert)
        if self.e.n_ff_shared:
            dh += self.shared_grad(dy, h)
        z = kept[f"ffn_moe_logits-{i}"] if self.e.gating == "chosen" else kept[f"ffn_moe_probs-{i}"]
        dz = route_grad_ref(dw, z, chosen, self.gating)
        dh += dz @ run.tensors[f"blk.{i}.ffn_gate_inp.weight"]
        return dh

    def shared_grad(self, dy: np.ndarray, h: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to h that flows through the shared expert."""
        i, run = self.layer, self.run
        gate, up = run.kept[f"shared-{i}"]
        act = gated_ref(gate, up, False)
        dh: np.ndarray = np.zeros_like(h)
        w = self.weight("ffn_gate_inp_shexp.weight")
        if w is not None:
            m = 1 / (1 + np.exp(-(h @ w)))[:, None]
            dm = (dy * run.linear(act, i, "down_shexp")).sum(axis=1, keepdims=True)
            dh, dy = dm * m * (1 - m) * w, dy * m
        dact = run.linear_grad(dy, act, i, "down_shexp")
        dgate, dup = gated_grad_ref(dact, gate, up, False)
        dh = dh + run.linear_grad(dgate, h, i, "gate_shexp")
        dh += run.linear_grad(dup, h, i, "up_shexp")
        return dh
