"""A block with a gated short convolution instead of attention (`nbllama.ops.short_conv`)."""

from __future__ import annotations

import numpy as np

from nbllama.model.mixers.carried import StateExchange, carried
from nbllama.model.parts import BlockParts
from nbllama.ops.short_conv import short_conv, short_conv_grad


def _taps(block: BlockParts) -> np.ndarray:
    return block.model.taps(block.name("shortconv.conv.weight"))


def forward(block: BlockParts, states: StateExchange | None) -> None:
    """Run the short convolution: compute `kept.x_mid` from the block's input."""
    kept, hp, offsets = block.kept, block.hp, block.batch.seq_offsets
    x = block.acts.x(block.layer, block.n)
    read = block.reads(x, hp.attn_norm, kept.rstd_att)
    block.see("attn_norm", read)
    bcx, y = kept.mixed["bcx"], block.shared("mixed")
    block.project("conv_in", block.input(read, "conv_in"), bcx)
    block.see("conv_in", bcx)
    before = after = None
    if (state := carried(block, states)) is not None:
        before, after = state.before["conv"], state.after["conv"]
    short_conv(bcx, _taps(block), offsets, y, before=before, after=after)
    block.see("conv_mixed", y)
    kept.x_mid[:] = x
    block.branch("conv_out", block.input(y, "conv_out"), kept.x_mid)
    block.see("ffn_inp", kept.x_mid)


def backward(block: BlockParts, below: bool) -> None:
    """Replace the gradient of `x_mid` in acts.dx with the gradient of the block's input.

    Without `below`, only the gradients of this block's pairs are computed.
    """
    kept, hp, offsets = block.kept, block.hp, block.batch.seq_offsets
    norm_trained = block.bound.trains(block.name("attn_norm.weight"))
    if not (below or norm_trained or block.trains("conv_in", "conv_out")):
        return
    taps, bcx, y = _taps(block), kept.mixed["bcx"], block.shared("mixed")
    dx, dy, dbcx = block.shared("dx"), block.shared("dmixed"), block.shared("dbcx")
    short_conv(bcx, taps, offsets, y)
    block.project_grad("conv_out", block.branch_grad("conv_out", dx), y, dy)
    block.see_grad("conv_mixed", dy)
    short_conv_grad(dy, bcx, taps, offsets, dbcx=dbcx)
    block.see_grad("conv_in", dbcx)
    x = block.acts.x(block.layer, block.n)
    read = block.reads(x, hp.attn_norm, kept.rstd_att)
    out = block.shared("dnorm") if below or norm_trained else None
    block.project_grad("conv_in", dbcx, read, out)
    if out is not None:
        block.see_grad("attn_norm", out)
        block.reads_grad(out, x, hp.attn_norm, kept.rstd_att, dx=dx if below else None)
