"""Cross-entropy of packed logits; the gradient overwrites the logits.

    loss_t = log sum_v exp(z_tv) - z_t,target        dz = w (softmax(z) - onehot(target))

Logits are stored as panels (`ops.linear.panels`) `zp[p, v, j]`: the output product
(`matmul_packed`) writes this layout, and the product for the gradient reads it. A task processes a
block of `BLOCK` logits per token in one panel. Before it computes exponentials, it subtracts each
token's largest logit in the block, m_b. The blocks are then combined using
exp(z - m) = exp(z - m_b) exp(m_b - m).

Source: llama.cpp `ggml_cross_entropy_loss`. finetune.cpp calls the loss t36. In 2023 and 2024,
`ggml_cross_entropy_loss` applied a floor f = 1e-9 to the probabilities, p' = p (1 - f) + f, in the
loss and the gradient. In this module, the floor is 0 (off) unless an old run is being reproduced.
The block-wise sum is from Milakov and Gimelshein, "Online normalizer calculation for softmax"
(2018).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama.kernels.jit import kernel
from nbllama.kernels.lanes import PANEL
from nbllama.kernels.simd import exp_f32
from nbllama.ops.linear.panels import n_panels, pack, panel_floats
from nbllama.ops.op import Gradients, Inputs, Op, check_array, check_output, readonly

BLOCK = 1024  # logits per token in a task; for all tokens in a panel, they fit in the L2 cache


def cross_entropy_ref(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the loss of each row `[M]`, given z `[M, V]` and targets `[M]`, in plain numpy."""
    top = z.max(axis=1)
    return np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), targets]


def cross_entropy_grad_ref(weight: float, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute d(weight * sum of losses)/dz, `[M, V]`."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    p[np.arange(len(z)), targets] -= 1
    return weight * p


@kernel(fast=True)
def _maxima(z, top):
    """Set top[j] to the maximum of z[:, j]. A NaN may be missed here, but it reaches the sum."""
    for j in range(PANEL):
        top[j] = z[0, j]
    for v in range(z.shape[0]):
        for j in range(PANEL):
            top[j] = z[v, j] if z[v, j] > top[j] else top[j]


@kernel()
def _shift(z, top):
    for v in range(z.shape[0]):
        for j in range(PANEL):
            z[v, j] -= top[j]


@kernel()
def _exponentials(z):
    for i in range(z.shape[0]):
        z[i] = exp_f32(z[i])


@kernel()
def _sums(z, total):
    for j in range(PANEL):
        total[j] = np.float32(0.0)
    for v in range(z.shape[0]):
        for j in range(PANEL):
            total[j] += z[v, j]


@kernel(parallel=True)
def _blocks(zp, tops, sums):
    """Replace each block's logits with shifted exponentials; write the shifts and the sums."""
    n_blocks = tops.shape[1]
    for task in prange(tops.shape[0] * n_blocks):
        p, b = task // n_blocks, task % n_blocks
        z = zp[p, b * BLOCK : (b + 1) * BLOCK]
        _maxima(z, tops[p, b])
        _shift(z, tops[p, b])
        _exponentials(z.reshape(z.shape[0] * PANEL))
        _sums(z, sums[p, b])


@kernel(parallel=True)
def _scale(zp, factors, lift):
    """Compute zp = zp * factors + lift, with one factor per block and token."""
    n_blocks = factors.shape[1]
    for task in prange(factors.shape[0] * n_blocks):
        p, b = task // n_blocks, task % n_blocks
        z, factor = zp[p, b * BLOCK : (b + 1) * BLOCK], factors[p, b]
        for v in range(z.shape[0]):
            for j in range(PANEL):
                z[v, j] = z[v, j] * factor[j] + lift[p, j]


def cross_entropy(
    zp: np.ndarray,
    targets: np.ndarray,
    *,
    weight: float | np.ndarray,
    losses: np.ndarray,
    floor: float = 0.0,
    gradient: bool = True,
) -> None:
    """Write the losses of packed logits zp `[P, V, PANEL]` to `losses`, float32 `[M]`.

    The logits are overwritten with their gradient times `weight`, and with zeros past row M. If
    `gradient` is false, the contents of zp are undefined afterwards. `weight` is a number or a
    float64 array `[M]` with one weight per row. `targets` is int32 `[M]`. `floor` is explained in
    the module docstring.
    """
    m = len(targets)
    if np.ndim(zp) != 3 or zp.shape[1] == 0 or zp.shape[0] != n_panels(m):
        raise ValueError(f"cross_entropy: z has shape {np.shape(zp)}, expected panels for {m} rows")
    check_output("cross_entropy", "z", zp, (*zp.shape[:2], PANEL))
    check_array("cross_entropy", "targets", targets, (m,), dtype=np.int32)
    check_output("cross_entropy", "losses", losses, (m,))
    if m == 0:
        return
    if targets.min() < 0 or targets.max() >= zp.shape[1]:
        raise ValueError(f"cross_entropy: a target is outside 0..{zp.shape[1] - 1}")
    rows = np.arange(m)
    at = (rows // PANEL, targets, rows % PANEL)
    wanted = zp[at]
    n_blocks = -(-zp.shape[1] // BLOCK)
    tops, sums = np.empty((2, len(zp), n_blocks, PANEL), np.float32)
    _blocks(zp, tops, sums)
    top = tops.max(axis=1)
    factors = np.exp((tops - top[:, None]).astype(np.float64))
    total = (sums * factors).sum(axis=1)
    losses[:] = (np.log(total) + top).reshape(-1)[:m] - wanted
    if floor > 0:
        losses[:] = -np.log(np.exp(-losses) * np.float32(1 - floor) + np.float32(floor))
    if not gradient:
        return
    weights = np.zeros(total.size)
    weights[:m] = weight
    of_rows = weights.reshape(total.shape)
    factors *= (of_rows * (1 - floor) / total)[:, None]
    lift = (of_rows * floor).astype(np.float32)
    _scale(zp, readonly(factors.astype(np.float32)), readonly(lift))
    zp[at] -= weights[:m].astype(np.float32)


def packed(z: np.ndarray) -> np.ndarray:
    """Return a packed copy of row-major logits `[M, V]`."""
    return pack(z, np.empty(panel_floats(len(z), z.shape[-1]), np.float32))


def unpacked(zp: np.ndarray, m: int) -> np.ndarray:
    """Return the first m rows of the panels in row-major order, `[m, V]`."""
    return np.ascontiguousarray(zp.transpose(0, 2, 1).reshape(-1, zp.shape[1])[:m])


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    m, v = {"tiny": (2, 4), "one": (1, 97), "odd": (37, 2501), "large": (5, 49152)}[size]
    z = (3 * rng.standard_normal((m, v))).astype(dtype)
    return {"z": z, "targets": rng.integers(0, v, m).astype(np.int32)}


def _losses(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    losses = np.empty(len(z), np.float32)
    cross_entropy(packed(z), targets, weight=1.0, losses=losses, gradient=False)
    return losses


def _gradients(dy: np.ndarray, z: np.ndarray, targets: np.ndarray) -> Gradients:
    check_array("cross_entropy", "dy", dy, z.shape[:1])
    zp, losses = packed(z), np.empty(len(z), np.float32)
    cross_entropy(zp, targets, weight=1.0, losses=losses)
    return {"z": unpacked(zp, len(z)) * dy[:, None]}


def _gradients_ref(dy: np.ndarray, z: np.ndarray, targets: np.ndarray) -> Gradients:
    return {"z": dy[:, None] * cross_entropy_grad_ref(1.0, z, targets)}


OPS = (
    Op(
        name="cross_entropy",
        sizes=("tiny", "one", "odd", "large"),
        sample=_sample,
        forward_ref=cross_entropy_ref,
        grad_ref=_gradients_ref,
        forward=_losses,
        grad=_gradients,
        tolerance=2e-6,
        why="float32 sums of 1024 exponentials, each accurate to 2.7e-7",
        ggml="ggml_cross_entropy_loss, ggml_cross_entropy_loss_back (both averaged over the rows)",
    ),
)
