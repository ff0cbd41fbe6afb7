"""The alternatives to attention that some blocks use, one per module.

Each module contains two functions for a block (`nbllama.model.parts.BlockParts`). `forward` writes
the residual stream between the mixer and feed-forward to `kept.x_mid`. `backward` replaces the
gradient of `x_mid` in acts.dx with the gradient of the block's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from nbllama.model.mixers import delta_net, short_conv
from nbllama.model.mixers.carried import Carried, StateExchange
from nbllama.model.parts import BlockParts

__all__ = ["MIXERS", "Carried", "Mixer", "StateExchange"]


class Mixer(NamedTuple):
    """The forward and backward pass of one kind of mixer; see the module docstring."""

    forward: Callable[[BlockParts, StateExchange | None], None]
    backward: Callable[[BlockParts, bool], None]


MIXERS: Mapping[str, Mixer] = {
    "conv": Mixer(short_conv.forward, short_conv.backward),
    "delta": Mixer(delta_net.forward, delta_net.backward),
}
"""The mixers, keyed by block kind (`Hparams.mixer_at`); attention is in `nbllama.model.block`."""
