"""The parts of the reference model that only some blocks use, in plain float64 numpy.

These are the alternatives to attention, and the gates of the attention output.
"""

from __future__ import annotations

import numpy as np

from nbllama.model.reference_ops import Operations
from nbllama.ops.activation import gated_grad_ref, gated_ref
from nbllama.ops.delta_net.conv import conv_silu_grad_ref, conv_silu_ref
from nbllama.ops.delta_net.delta_net import delta_net_ref
from nbllama.ops.delta_net.gates import gates_grad_ref, gates_ref
from nbllama.ops.delta_net.grad import delta_net_grad_ref
from nbllama.ops.out_gate import out_gate_grad_ref, out_gate_ref
from nbllama.ops.short_conv import short_conv_grad_ref, short_conv_ref


class Mixers(Operations):
    """The operations, with additional methods for the alternatives to attention."""

    def mixed(self, h: np.ndarray, i: int) -> np.ndarray:
        """Compute the mixer output of block `i`, which has no attention, for input h `[N, C]`."""
        if self.hp.mixer_at(i) == "delta":
            return self.delta(h, i)
        bcx = self.keep(f"conv_in-{i}", self.linear(h, i, "conv_in"))
        y = short_conv_ref(bcx, self.taps("shortconv.conv", i), self.batch.seq_offsets)
        y = self.keep(f"conv_mixed-{i}", y)
        return self.keep(f"conv_out-{i}", self.linear(y, i, "conv_out"))

    def mixed_grad(self, dy: np.ndarray, i: int) -> np.ndarray:
        """Return the gradient of `mixed` with respect to h, given the gradient of its output."""
        if self.hp.mixer_at(i) == "delta":
            return self.delta_grad(dy, i)
        kept, taps = self.kept, self.taps("shortconv.conv", i)
        dmixed = self.linear_grad(dy, kept[f"conv_mixed-{i}"], i, "conv_out")
        dbcx = short_conv_grad_ref(dmixed, kept[f"conv_in-{i}"], taps, self.batch.seq_offsets)
        return self.linear_grad(dbcx, kept[f"attn_norm-{i}"], i, "conv_in")

    def taps(self, name: str, i: int) -> np.ndarray:
        """Return the weights of a convolution as `[K, ...]`."""
        return np.asarray(self.tensors[f"blk.{i}.{name}.weight"].T)

    # The delta net: `kept` contains the outputs of the projections

    def delta(self, h: np.ndarray, i: int) -> np.ndarray:
        """Compute the output of the delta net in block `i`."""
        keep, n = self.keep, len(h)
        for name in ("qkv", "z", "alpha", "beta"):
            keep(f"delta_{name}-{i}", self.linear(h, i, name))
        q, k, v = self.convolved(i)
        q, k = self.to_length_1(q), self.to_length_1(k)
        g, beta = self.gates(i)
        offsets, scale = self.batch.seq_offsets, self.delta_scale
        o = delta_net_ref(q, k, v, g=g, beta=beta, offsets=offsets, scale=scale)
        o = keep(f"delta_o-{i}", o)
        normed = self.norm_of_heads(o, f"blk.{i}.ssm_norm").reshape(n, -1)
        y = self.keep(f"delta_out-{i}", gated_ref(self.kept[f"delta_z-{i}"], normed, False))
        return keep(f"ssm_out-{i}", self.linear(y, i, "ssm_out"))

    def delta_grad(self, dy: np.ndarray, i: int) -> np.ndarray:
        """Return the gradient of `delta` with respect to h."""
        kept, offsets, n = self.kept, self.batch.seq_offsets, len(dy)
        dout = self.linear_grad(dy, kept[f"delta_out-{i}"], i, "ssm_out")
        o, norm = kept[f"delta_o-{i}"], f"blk.{i}.ssm_norm"
        normed = self.norm_of_heads(o, norm).reshape(n, -1)
        dz, dnormed = gated_grad_ref(dout, kept[f"delta_z-{i}"], normed, False)
        do = self.norm_grad_of_heads(dnormed.reshape(o.shape), o, norm)
        q, k, v = self.convolved(i)
        g, beta = self.gates(i)
        d = delta_net_grad_ref(
            do, self.to_length_1(q), self.to_length_1(k), v, g=g, beta=beta, offsets=offsets,
            scale=self.delta_scale,
        )  # fmt: skip
        dalpha, db = gates_grad_ref(np.stack([d["g"], d["beta"]]), **self.gate_inputs(i))
        d["q"], d["k"] = self.to_length_1_grad(d["q"], q), self.to_length_1_grad(d["k"], k)
        dconv = np.concatenate([d[name].reshape(n, -1) for name in "qkv"], axis=1)
        taps = self.taps("ssm_conv1d", i)
        dqkv = conv_silu_grad_ref(dconv, kept[f"delta_qkv-{i}"], taps, offsets)
        read = kept[f"attn_norm-{i}"]
        inputs = (("qkv", dqkv), ("z", dz), ("alpha", dalpha), ("beta", db))
        return np.asarray(sum(self.linear_grad(dx, read, i, name) for name, dx in inputs))

    def convolved(self, i: int) -> list[np.ndarray]:
        """Return queries and keys `[N, G, D]` and values `[N, H, D]` after the convolution."""
        of = self.hp.delta
        assert of is not None
        qkv, taps = self.kept[f"delta_qkv-{i}"], self.taps("ssm_conv1d", i)
        y = conv_silu_ref(qkv, taps, self.batch.seq_offsets)
        keys = of.key_heads * of.size
        return [x.reshape(len(y), -1, of.size) for x in np.split(y, [keys, 2 * keys], axis=1)]

    def gate_inputs(self, i: int) -> dict[str, np.ndarray]:
        """Return the inputs of the two gates as keyword arguments for `gates_ref`."""
        a, dt = self.tensors[f"blk.{i}.ssm_a"], self.tensors[f"blk.{i}.ssm_dt.bias"]
        alpha, b = self.kept[f"delta_alpha-{i}"], self.kept[f"delta_beta-{i}"]
        return {"alpha": alpha, "b": b, "a": a, "dt": dt}

    def gates(self, i: int) -> np.ndarray:
        """Return the gates g and beta as one array `[2, N, H]`."""
        return gates_ref(**self.gate_inputs(i))

    @property
    def delta_scale(self) -> float:
        """The factor for the output of each query."""
        assert self.hp.delta is not None
        return float(1 / np.sqrt(self.hp.delta.size))

    def to_length_1(self, x: np.ndarray) -> np.ndarray:
        """Compute x / sqrt(sum of squares + eps) for each head."""
        length = np.sqrt((x * x).sum(axis=-1, keepdims=True) + self.hp.rms_eps)
        return np.asarray(x / length)

    def to_length_1_grad(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the gradient of `to_length_1` with respect to x."""
        square = (x * x).sum(axis=-1, keepdims=True) + self.hp.rms_eps
        along = (dy * x).sum(axis=-1, keepdims=True) / square
        return np.asarray((dy - along * x) / np.sqrt(square))

    # The gates of the attention output

    def queries(self, h: np.ndarray, i: int) -> np.ndarray:
        """Return the projected queries `[N, H, D]`; if the model has gates, store the gates."""
        hp, y = self.hp, self.linear(h, i, "q")
        if not hp.attn_gate:
            return y.reshape(-1, hp.n_head, hp.sizes_at(i).head_dim)
        both = self.kept[f"q_gate-{i}"] = y.reshape(-1, hp.n_head, 2, hp.head_dim)
        return both[:, :, 0]

    def gated_att(self, att: np.ndarray, i: int) -> np.ndarray:
        """Return the attention output, multiplied by its gates, if any."""
        if not self.hp.attn_gate:
            return att
        return self.keep(f"attn_gated-{i}", out_gate_ref(att, self.kept[f"q_gate-{i}"]))

    def gated_att_grad(self, dy: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the gradients with respect to the attention output and the gates."""
        att = self.kept[f"kqv_out-{i}"]
        if not self.hp.attn_gate:
            return dy, None
        return out_gate_grad_ref(dy.reshape(att.shape), att, self.kept[f"q_gate-{i}"])

    def with_gates(self, dq: np.ndarray, dgate: np.ndarray | None) -> np.ndarray:
        """Return the gradient of the projection's output, which contains queries and any gates."""
        if dgate is not None:
            dq = dgate + np.stack([dq, np.zeros_like(dq)], axis=2)
        return dq.reshape(len(dq), -1)
