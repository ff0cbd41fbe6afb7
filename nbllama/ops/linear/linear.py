"""A linear layer of the frozen base model with its LoRA pair, built from `matmul` and `lora`.

y = x Wᵀ + s (x Aᵀ) Bᵀ
dx = dy W + dh A,   dA = dhᵀ x,   dB = dyᵀ h        with h = s x Aᵀ and dh = s dy B

With dropout (`ops.dropout`), the input of the pair is x' = x keep / (1 - p) instead of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nbllama.kernels.lanes import PANEL
from nbllama.ops.dropout import Dropout, add_dropped, dropout_for, dropped, keep_ref
from nbllama.ops.linear.lora import (
    add_hidden,
    lora_grad_ref,
    lora_ref,
    pack_with_hidden,
    packed_rows,
    thin_product,
)
from nbllama.ops.linear.lora_grad import pack_with_gradients
from nbllama.ops.linear.matmul import (
    NO_PAIR,
    Weight,
    matmul,
    matmul_grad,
    matmul_grad_ref,
    matmul_ref,
)
from nbllama.ops.linear.matvec import MOST_TOKENS, matvec
from nbllama.ops.linear.panels import NO_PANELS, n_panels, pack, panel_floats
from nbllama.ops.op import Gradients, Inputs, Op
from nbllama.quants import as_readonly, decode


class LoraPair(NamedTuple):
    """A LoRA pair: A `[R, n_in]`, B `[n_out, R]` and the scale.

    Gradients are accumulated in `da` and `db`, which are None if the pair is not trained.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    da: np.ndarray | None
    db: np.ndarray | None

    @property
    def rank(self) -> int:
        """The rank of the pair, which is the number of rows of A."""
        return int(self.a.shape[0])


class Masked(NamedTuple):
    """The dropout mask for one input, with memory for x' `[N, K]` and its panels."""

    mask: Dropout
    values: np.ndarray
    panels: np.ndarray


class Input:
    """The input x `[N, K]` of one or more linear layers, packed on first use.

    `group` contains the layers' pairs, each with memory for its h, which is computed while x is
    packed. With `masked`, dropout is applied to the input of the pairs.
    """

    def __init__(
        self,
        x: np.ndarray,
        buffer: np.ndarray,
        group: Sequence[tuple[LoraPair | None, np.ndarray | None]] = (),
        masked: Masked | None = None,
    ) -> None:
        self.x = x
        self._dropped: Input | None = None
        if masked is not None:
            x_dropped = dropped(x, masked.mask, masked.values)
            self._dropped, group = Input(x_dropped, masked.panels, group), ()
        self._buffer = buffer
        self._group = [(pair, memory) for pair, memory in group if pair is not None]
        self._panels: np.ndarray | None = None
        self._hidden: list[np.ndarray] = []

    @property
    def panels(self) -> np.ndarray:
        """Return x packed `[P, K, PANEL]`."""
        if self._panels is None:
            if self._group:
                factors = []
                for pair, memory in self._group:
                    _check_ranks(pair)
                    if memory is None:
                        memory = np.empty(hidden_floats(len(self.x), pair.rank), np.float32)
                    factors.append((pair.a, pair.scale, memory))
                self._panels, self._hidden = pack_with_hidden(self.x, self._buffer, factors)
            else:
                self._panels = pack(self.x, self._buffer)
        return self._panels

    def hidden(self, pair: LoraPair, memory: np.ndarray | None) -> np.ndarray:
        """Return a pair's packed h = s x Aᵀ, computing it if the pair is not in the group."""
        if self._dropped is not None:
            return self._dropped.hidden(pair, memory)
        panels = self.panels
        for (member, _), h in zip(self._group, self._hidden, strict=True):
            if member is pair:
                return h
        _check_ranks(pair)
        if memory is None:
            memory = np.empty(hidden_floats(len(self.x), pair.rank), np.float32)
        return thin_product(pair.a, panels, pair.scale, memory)


def _check_ranks(pair: LoraPair) -> None:
    if np.ndim(pair.a) != 2 or np.ndim(pair.b) != 2 or pair.a.shape[0] != pair.b.shape[1]:
        raise ValueError(
            f"lora_a {np.shape(pair.a)} and lora_b {np.shape(pair.b)} do not have the same rank"
        )


def hidden_floats(n: int, rank: int) -> int:
    """Return the number of floats in packed h or dh for `n` tokens."""
    return n_panels(n) * PANEL * packed_rows(rank)


def linear(
    w: Weight,
    pair: LoraPair | None,
    x: Input,
    y: np.ndarray,
    *,
    hidden: np.ndarray | None,
    add: bool = False,
    packed: bool = False,
) -> np.ndarray:
    """Write the layer's output to y `[N, n_out]`; with `add`, add it to y instead.

    Returns packed h, which the gradient requires; it is empty if there is no pair. `hidden` is
    float32 memory for h with at least `hidden_floats(N, R)` numbers. With `packed`, `matmul` is
    used even for a few rows, so that a row's result does not depend on the number of rows.
    """
    if len(x.x) <= MOST_TOKENS and not packed:
        matvec(w, x.x, y, add=add)
        if pair is None:
            return NO_PANELS
        hp = x.hidden(pair, hidden)
        add_hidden(hp, pair.b, y)
        return hp
    if pair is None:
        matmul(w, x.panels, y, add=add)
        return NO_PANELS
    hp = x.hidden(pair, hidden)
    matmul(w, x.panels, y, hp=hp, b=pair.b, add=add)
    return hp


def linear_grad(
    w: Weight,
    pair: LoraPair | None,
    dy: np.ndarray,
    x: np.ndarray,
    *,
    hp: np.ndarray,
    dx: np.ndarray | None,
    buffers: tuple[np.ndarray, np.ndarray],
    add: bool = False,
    masked: Masked | None = None,
) -> None:
    """Add the pair's gradients to `da` and `db`, and write dx `[N, n_in]` = dy W + dh A.

    With `add`, the result is added to dx instead. If dx is None, only the pair's gradients are
    computed. x is the layer's input, and hp is the result of `linear`. `buffers` is memory for
    packed dy and packed dh. `masked` must be the same as in the forward pass.
    """
    if dy.shape != (len(x), w.shape[0]):
        raise ValueError(f"{w.name}: mismatched shapes: dy {dy.shape}, x {x.shape}, W {w.shape}")
    if dx is None and pair is None:
        return
    dhp, a = NO_PANELS, NO_PAIR
    if pair is None:
        gp = pack(dy, buffers[0])
    else:
        a = pair.a
        if pair.da is not None and pair.db is not None:
            seen = x if masked is None else dropped(x, masked.mask, masked.values)
            gp, dhp = pack_with_gradients(
                dy, buffers[0], pair.b, scale=pair.scale, dh_memory=buffers[1], x=seen, hp=hp,
                da=pair.da, db=pair.db,
            )  # fmt: skip
        else:
            gp, (dhp,) = pack_with_hidden(dy, buffers[0], [(pair.b.T, pair.scale, buffers[1])])
    if dx is None:
        return
    if pair is None or masked is None:
        matmul_grad(w, gp, dx, dhp=dhp, a=a, add=add)
    else:
        matmul_grad(w, gp, dx, dhp=NO_PANELS, a=NO_PAIR, add=add)
        add_dropped(dhp, pair.a, masked.mask, dx)


def _weight(n_out: int, n_in: int) -> Weight:
    """Return a float32 weight that contains fixed random numbers, stored as in a GGUF file."""
    w = np.random.default_rng(11).standard_normal((n_out, n_in)).astype(np.float32)
    return Weight("w", 0, as_readonly(w.reshape(-1).view(np.uint8)), (n_out, n_in))


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    n, k, n_out, rank = {
        "tiny": (2, 3, 4, 2),
        "one": (1, 64, 48, 4),
        "few": (3, 101, 67, 1),
        "odd": (37, 101, 67, 7),
        "wide": (70, 576, 192, 16),
    }[size]
    return {
        "x": rng.standard_normal((n, k)).astype(dtype),
        "a": rng.standard_normal((rank, k)).astype(dtype),
        "b": rng.standard_normal((n_out, rank)).astype(dtype),
        "w": _weight(n_out, k),
        "scale": 0.5,
    }


def _masked(x: np.ndarray, mask: Dropout | None) -> Masked | None:
    if mask is None:
        return None
    sizes = (x.size, panel_floats(*x.shape) if x.ndim == 2 else 0)
    return Masked(mask, *(np.empty(size, np.float32) for size in sizes))


def _apply(
    x: np.ndarray, a: np.ndarray, b: np.ndarray, w: Weight, scale: float, mask: Dropout | None
) -> tuple[np.ndarray, np.ndarray]:
    y = np.empty((len(x), w.shape[0]), np.float32)
    pool = np.empty(panel_floats(len(x), w.shape[1]), np.float32)
    source = Input(x, pool, masked=_masked(x, mask))
    return y, linear(w, LoraPair(a, b, scale, None, None), source, y, hidden=None)


def _gradients(
    dy: np.ndarray, x: np.ndarray, a: np.ndarray, b: np.ndarray, w: Weight, scale: float,
    mask: Dropout | None = None,
) -> Gradients:  # fmt: skip
    _, hp = _apply(x, a, b, w, scale, mask)
    pair = LoraPair(a, b, scale, np.zeros_like(a), np.zeros_like(b))
    pools = (panel_floats(len(x), w.shape[0]), hidden_floats(len(x), pair.rank))
    dx, pool = np.empty_like(x), [np.empty(p, np.float32) for p in pools]
    linear_grad(w, pair, dy, x, hp=hp, dx=dx, buffers=(pool[0], pool[1]), masked=_masked(x, mask))
    assert pair.da is not None and pair.db is not None
    return {"x": dx, "a": pair.da, "b": pair.db}


def _matrix(w: Weight, dtype: Any) -> np.ndarray:
    return decode(w.type_id, w.raw, w.shape[0] * w.shape[1]).reshape(w.shape).astype(dtype)


def _keep(x: np.ndarray, mask: Dropout | None) -> np.ndarray:
    return np.ones_like(x) if mask is None else keep_ref(mask, *x.shape).astype(x.dtype)


def _forward_ref(
    x: np.ndarray, a: np.ndarray, b: np.ndarray, w: Weight, scale: float,
    mask: Dropout | None = None,
) -> np.ndarray:  # fmt: skip
    return matmul_ref(x, _matrix(w, x.dtype)) + lora_ref(x * _keep(x, mask), a, b, scale)


def _gradients_ref(
    dy: np.ndarray, x: np.ndarray, a: np.ndarray, b: np.ndarray, w: Weight, scale: float,
    mask: Dropout | None = None,
) -> Gradients:  # fmt: skip
    dx, _ = matmul_grad_ref(dy, x, _matrix(w, x.dtype))
    keep = _keep(x, mask)
    through, da, db = lora_grad_ref(dy, x * keep, a, b, scale=scale)
    return {"x": dx + through * keep, "a": da, "b": db}


OPS = (
    Op(
        name="linear with LoRA",
        sizes=("tiny", "one", "few", "odd", "wide"),
        sample=_sample,
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=lambda **inputs: _apply(**inputs, mask=None)[0],
        grad=_gradients,
        tolerance=2e-6,
        why="float32 sums of up to 576 products",
        ggml="ggml_mul_mat for y, ggml_out_prod for dx, dA and dB",
    ),
    Op(
        name="linear with LoRA and dropout",
        sizes=("tiny", "one", "few", "odd", "wide"),
        sample=lambda *how: {**_sample(*how), "mask": dropout_for(0.4, 3, 5, 1).at(2, 1)},
        forward_ref=_forward_ref,
        grad_ref=_gradients_ref,
        forward=lambda **inputs: _apply(**inputs)[0],
        grad=_gradients,
        tolerance=2e-6,
        why="float32 sums of up to 576 products",
        ggml="none: llama.cpp has no dropout",
    ),
)
