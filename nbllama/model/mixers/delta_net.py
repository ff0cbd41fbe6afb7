"""A block with a gated delta net instead of attention (`nbllama.ops.delta_net`).

The block's normalised input is projected to qkv, z, alpha and beta. The output y, which is added to
the residual stream, is computed as follows:

    q, k, v = silu(conv(qkv))           (q and k are then scaled to length 1)
    g, beta = gates(alpha, beta)
    o       = delta_net(q, k, v, g, beta)
    y       = ssm_out(silu(z) norm(o))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.model.mixers.carried import StateExchange, carried
from nbllama.model.parts import BlockParts
from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.delta_net.conv import conv_silu, conv_silu_grad
from nbllama.ops.delta_net.delta_net import delta_net
from nbllama.ops.delta_net.gates import gates, gates_grad
from nbllama.ops.delta_net.grad import delta_net_grad
from nbllama.ops.rms_norm import rms_norm, rms_norm_grad
from nbllama.ops.short_conv import leave_state

INPUTS = ("qkv", "z", "alpha", "beta")


class _Parts(NamedTuple):
    """The inputs of the delta rule; `raw` contains q, k and v before q and k are scaled."""

    raw: dict[str, np.ndarray]
    rstd: dict[str, np.ndarray]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    beta: np.ndarray


class DeltaBlock:
    """A delta-net block, applied to one batch.

    Shapes are the same as in `nbllama.ops.delta_net.delta_net`.
    """

    def __init__(self, block: BlockParts) -> None:
        of = block.hp.delta
        assert of is not None  # otherwise, the model has no delta-net blocks
        self.block, self.of = block, of
        self.offsets = block.batch.seq_offsets
        self.taps = block.model.taps(block.name("ssm_conv1d.weight"))
        vectors = block.model.vectors
        self.a = vectors[block.name("ssm_a")]
        self.dt = vectors[block.name("ssm_dt.bias")]
        # x / sqrt(sum of squares + eps) is the same as RMSNorm with these weights and eps / D
        self.one = np.full(of.size, 1 / np.sqrt(of.size), np.float32)
        self.eps = block.hp.rms_eps / of.size

    def columns(self) -> tuple[tuple[str, int], ...]:
        """Return the columns of `qkv` at which the queries, the keys and the values begin."""
        keys = self.of.key_heads * self.of.size
        return ("q", 0), ("k", keys), ("v", 2 * keys)

    def parts(self, before: np.ndarray | None) -> _Parts:
        """Compute the inputs of the delta rule from the projections, in arrays that blocks share.

        `before` contains the states of the convolution before this batch.
        """
        block, mixed = self.block, self.block.kept.mixed
        arrays = {name: block.shared(f"delta_{name}") for name in "qkv"}
        for name, column in self.columns():
            y = arrays[name].reshape(block.n, -1)
            conv_silu(mixed["qkv"], self.taps, self.offsets, y, before=before, column=column)
        normed = {name: block.shared(f"delta_{name}_normed") for name in "qk"}
        rstd = {name: block.shared(f"delta_rstd_{name}").reshape(-1) for name in "qk"}
        for name in "qk":
            x, y = (a.reshape(-1, self.of.size) for a in (arrays[name], normed[name]))
            rms_norm(x, self.one, self.eps, y=y, rstd=rstd[name])
        g, beta = block.shared("delta_g"), block.shared("delta_beta")
        gates(mixed["alpha"], mixed["beta"], self.a, self.dt, g=g, beta=beta)
        return _Parts(arrays, rstd, normed["q"], normed["k"], arrays["v"], g, beta)

    def output(self) -> np.ndarray:
        """Compute silu(z) norm(o) `[N, H M]`, in an array that blocks share."""
        block, kept = self.block, self.block.kept
        y, normed = block.shared("delta_out"), block.shared("delta_normed")
        self.normed(normed)
        gated(kept.mixed["z"], normed, y)
        return y

    def normed(self, y: np.ndarray) -> None:
        """Write norm(o) of each head to y `[N, H M]`."""
        kept, rows = self.block.kept, (-1, self.of.size)
        norm, rstd = self.block.name("ssm_norm.weight"), kept.mixed["rstd"].reshape(-1)
        self.block.bound.normed(norm, kept.mixed["o"].reshape(rows), y.reshape(rows), rstd)

    @property
    def scale(self) -> float:
        """The factor for the output of each query."""
        return float(1 / np.sqrt(np.float32(self.of.size)))


def forward(block: BlockParts, states: StateExchange | None) -> None:
    """Run the delta net: compute `kept.x_mid` from the block's input."""
    kept, hp, of = block.kept, block.hp, DeltaBlock(block)
    x = block.acts.x(block.layer, block.n)
    read = block.reads(x, hp.attn_norm, kept.rstd_att)
    block.see("attn_norm", read)
    for pair in (INPUTS[:2], INPUTS[2:]):  # at most three layers can share an `Input`
        source = block.input(read, *pair)
        for name in pair:
            block.project(name, source, kept.mixed[name])
            block.see(f"delta_{name}", kept.mixed[name])
    state = carried(block, states)
    conv = state.before["conv"] if state is not None else None
    parts = of.parts(conv)
    delta_net(
        parts.q, parts.k, parts.v, g=parts.g, beta=parts.beta, offsets=of.offsets, scale=of.scale,
        o=kept.mixed["o"], before=state.before["delta"] if state is not None else None,
        after=state.after["delta"] if state is not None else None,
    )  # fmt: skip
    if state is not None:
        leave_state(kept.mixed["qkv"], of.offsets, conv, state.after["conv"])
    block.see("delta_o", kept.mixed["o"])
    kept.x_mid[:] = x
    y = of.output()
    block.see("delta_out", y)
    block.branch("ssm_out", block.input(y, "ssm_out"), kept.x_mid)
    block.see("ffn_inp", kept.x_mid)


def backward(block: BlockParts, below: bool) -> None:
    """Replace the gradient of `x_mid` in acts.dx with the gradient of the block's input.

    Without `below`, only the gradients of this block's pairs are computed.
    """
    kept, hp = block.kept, block.hp
    norm_trained = block.bound.trains(block.name("attn_norm.weight"))
    if not (below or norm_trained or block.trains("ssm_out", *INPUTS)):
        return
    of = DeltaBlock(block)
    dx, dy, dz = block.shared("dx"), block.shared("delta_dout"), block.shared("delta_dz")
    block.project_grad("ssm_out", block.branch_grad("ssm_out", dx), of.output(), dy)
    block.see_grad("delta_out", dy)
    # the gate z, and the norm of o
    dnormed, rows = block.shared("delta_normed"), (-1, of.of.size)
    dz[:] = kept.mixed["z"]
    gated_grad(dy, dz, dnormed)
    do, o = block.shared("delta_do"), kept.mixed["o"]
    block.bound.normed_grad(
        block.name("ssm_norm.weight"), dnormed.reshape(rows), o.reshape(rows),
        kept.mixed["rstd"].reshape(-1), dx=do.reshape(rows),
    )  # fmt: skip
    block.see_grad("delta_o", do)
    # the delta rule
    parts = of.parts(None)
    d = {name: block.shared(f"delta_d{name}") for name in ("q", "k", "v", "g", "beta")}
    delta_net_grad(
        do, parts.q, parts.k, parts.v, g=parts.g, beta=parts.beta, offsets=of.offsets,
        scale=of.scale, dq=d["q"], dk=d["k"], dv=d["v"], dg=d["g"], dbeta=d["beta"],
    )  # fmt: skip
    # the gates, the scaling to length 1, and the convolution
    dalpha, db = block.shared("delta_dalpha"), block.shared("delta_db")
    mixed = kept.mixed
    gates_grad(
        d["g"], d["beta"], mixed["alpha"], mixed["beta"], a=of.a, dt=of.dt, dalpha=dalpha, db=db
    )
    for name in "qk":
        dn, raw = d[name].reshape(rows), parts.raw[name].reshape(rows)
        rms_norm_grad(dn, raw, of.one, parts.rstd[name], dx=dn)
    dqkv = block.shared("delta_dqkv")
    for name, column in of.columns():
        memory = parts.raw[name].reshape(block.n, -1)  # no longer used
        conv_silu_grad(
            d[name].reshape(block.n, -1), mixed["qkv"], of.taps, of.offsets, du=dqkv,
            memory=memory, column=column,
        )  # fmt: skip
    x = block.acts.x(block.layer, block.n)
    read = block.reads(x, hp.attn_norm, kept.rstd_att)
    out = block.shared("dnorm") if below or norm_trained else None
    for i, (name, dinput) in enumerate(zip(INPUTS, (dqkv, dz, dalpha, db), strict=True)):
        block.see_grad(f"delta_{name}", dinput)
        block.project_grad(name, dinput, read, out, add=i > 0)
    if out is not None:
        block.see_grad("attn_norm", out)
        block.reads_grad(out, x, hp.attn_norm, kept.rstd_att, dx=dx if below else None)
