"""A linear layer of the frozen base with its LoRA pair: where `matmul` and `lora_ops` meet.

y = x Wᵀ + s (x Aᵀ) Bᵀ
dx = dy W + dh A,   dA = dhᵀ x,   dB = dyᵀ h        with h = s x Aᵀ and dh = s dy B
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.ops.lora_ops import add_hidden, outer_product, padded, thin_product
from nbllama.ops.matmul import NO_PAIR, NO_PANELS, Weight, matmul, matmul_grad, n_panels, pack
from nbllama.ops.matvec import MOST_TOKENS, matvec
from nbllama.simd import PANEL


class LoraPair(NamedTuple):
    """A `[R, n_in]`, B `[n_out, R]`, the scale, and the arrays their gradients are added to
    (None: not trained).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    da: np.ndarray | None
    db: np.ndarray | None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


class Input:
    """The input x `[N, K]` of one or more linear layers, packed once when the first of them
    needs it.
    """

    def __init__(self, x: np.ndarray, buffer: np.ndarray) -> None:
        self.x = x
        self._buffer = buffer
        self._panels: np.ndarray | None = None

    @property
    def panels(self) -> np.ndarray:
        if self._panels is None:
            self._panels = pack(self.x, self._buffer)
        return self._panels


def panel_floats(n: int, k: int) -> int:
    """float32 numbers that `n` tokens of width `k` take when packed."""
    return n_panels(n) * PANEL * k


def hidden_floats(n: int, rank: int) -> int:
    """float32 numbers of the packed h or dh of `n` tokens."""
    return n_panels(n) * PANEL * padded(rank)


def linear(
    w: Weight,
    pair: LoraPair | None,
    x: Input,
    y: np.ndarray,
    hidden: np.ndarray | None,
    *,
    add: bool = False,
) -> np.ndarray:
    """y `[N, n_out]` = (or += with `add`) the layer's output; returns h packed (empty without a
    pair).

    `hidden` is float32 memory of at least `hidden_floats(N, R)` for h, which the gradient needs.
    """
    if len(x.x) <= MOST_TOKENS:
        matvec(w, x.x, y, add=add)
        if pair is None:
            return NO_PANELS
        hp = hidden_only(pair, x, hidden)
        add_hidden(hp, pair.b, y)
        return hp
    if pair is None:
        matmul(w, x.panels, y, add=add)
        return NO_PANELS
    hp = hidden_only(pair, x, hidden)
    matmul(w, x.panels, y, hp=hp, b=pair.b, add=add)
    return hp


def hidden_only(pair: LoraPair | None, x: Input, hidden: np.ndarray | None) -> np.ndarray:
    """h = s x Aᵀ packed, without the layer's output."""
    if pair is None:
        return NO_PANELS
    if hidden is None:
        hidden = np.empty(hidden_floats(len(x.x), pair.rank), np.float32)
    return thin_product(pair.a, x.panels, pair.scale, hidden)


def linear_grad(
    w: Weight,
    pair: LoraPair | None,
    dy: np.ndarray,
    x: np.ndarray,
    hp: np.ndarray,
    dx: np.ndarray | None,
    buffers: tuple[np.ndarray, np.ndarray],
    *,
    add: bool = False,
) -> None:
    """Adds the pair's gradients to its `da`, `db`; dx `[N, n_in]` = (or += with `add`) dy W + dh A.

    x is the layer's input, hp what `linear` returned; with dx None nothing but the pair is
    computed. `buffers`: memory for dy packed and for dh packed.
    """
    if dx is None and pair is None:
        return
    gp = pack(dy, buffers[0])
    dhp, a = NO_PANELS, NO_PAIR
    if pair is not None:
        a = pair.a
        dhp = thin_product(pair.b, gp, pair.scale, buffers[1], transposed=True)
        if pair.da is not None and pair.db is not None:
            np.add(pair.da, outer_product(dhp, x, pair.rank), out=pair.da)
            np.add(pair.db, outer_product(hp, dy, pair.rank).T, out=pair.db)
    if dx is not None:
        matmul_grad(w, gp, dx, dhp=dhp, a=a, add=add)
