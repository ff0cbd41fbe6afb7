"""Cross-entropy fused with the output product: the whole `[N, V]` matrix of logits never exists.

    z = x Wᵀ (+ LoRA)        loss = sum over rows  w (log sum_v exp(z_v) - z_target)
    dz = w (softmax(z) - onehot(target))           dx = dz W (+ LoRA)

Rows are the positions that have a target, gathered beforehand: other positions cost nothing. They
pass in chunks of `CHUNK` rows; a chunk's logits become their own gradient in place. The weight `w`
of a row is 1 / (trained tokens of the step), so that sums over micro-batches are the step's mean.
Where a model bends its logits by a soft-cap (`ops.softcap`), a copy of the bent chunk is kept.

Source: llama.cpp `ggml_cross_entropy_loss`. finetune.cpp: t34, t36. In 2023 and 2024 that had a
floor f = 1e-9 under the probabilities, p' = p (1 - f) + f, in loss and gradient; it is an option
here, and off (0) unless an old run is to be repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbllama._jit import kernel
from nbllama.lanes import PANEL
from nbllama.ops.linear import LoraPair
from nbllama.ops.lora_ops import add_pair_gradients, padded, thin_product
from nbllama.ops.matmul import NO_PAIR, Weight, matmul, matmul_grad
from nbllama.ops.op import (
    Gradients,
    Inputs,
    Op,
    check_array,
    check_output,
    copy_as_laid_out,
    readonly,
)
from nbllama.ops.panels import NO_PANELS, n_panels, pack
from nbllama.ops.softcap import soft_cap, soft_cap_grad
from nbllama.simd import exp_f32, row_max

CHUNK = 128  # rows whose logits are alive together


def cross_entropy_ref(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Loss of each row in plain numpy: z `[M, V]`, targets `[M]` -> `[M]`."""
    top = z.max(axis=1)
    return np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), targets]


def cross_entropy_grad_ref(weight: float, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """d(weight * sum of losses)/dz, `[M, V]`."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    p[np.arange(len(z)), targets] -= 1
    return weight * p


@kernel(fast=True)
def _exponentials(row, top):
    total = np.float32(0.0)
    for v in range(row.shape[0]):
        e = exp_f32(row[v] - top)
        row[v] = e
        total += e
    return total


@kernel(parallel=True)
def _cross_entropy(z, targets, weight, losses, floor):
    """losses[m] = unweighted loss of row m; z becomes its weighted gradient."""
    for m in prange(z.shape[0]):
        row = z[m]
        top = row_max(row, 0, row.shape[0])
        wanted = row[targets[m]]
        total = _exponentials(row, top)
        losses[m] = np.float32(np.log(total)) + top - wanted
        row *= weight / total
        if floor > 0:
            losses[m] = -np.log(np.exp(-losses[m]) * (np.float32(1.0) - floor) + floor)
            row *= np.float32(1.0) - floor
            row += weight * floor
        row[targets[m]] -= weight


def cross_entropy(
    z: np.ndarray, targets: np.ndarray, weight: float, losses: np.ndarray, floor: float = 0.0
) -> None:
    """Losses float32 `[M]` of logits z `[M, V]`, which become their own gradient times `weight`.

    `floor`: see the module's text.
    """
    if np.ndim(z) != 2 or z.shape[1] == 0:
        raise ValueError(f"cross_entropy: z has shape {np.shape(z)}, wanted [M, V]")
    check_output("cross_entropy", "z", z, z.shape)
    check_array("cross_entropy", "targets", targets, z.shape[:1], np.int32)
    check_output("cross_entropy", "losses", losses, z.shape[:1])
    if targets.size and (targets.min() < 0 or targets.max() >= z.shape[1]):
        raise ValueError(f"cross_entropy: a target is outside 0..{z.shape[1] - 1}")
    _cross_entropy(z, readonly(targets), np.float32(weight), losses, np.float32(floor))


class LossBuffers:
    """Reused memory of one chunk: logits `[CHUNK, V]`, its panels, and the input's panels; the
    logits twice where a soft-cap `cap` bends them.
    """

    def __init__(
        self, n_vocab: int, n_embd: int, rank: int, most_rows: int, cap: float = 0.0
    ) -> None:
        rows = min(CHUNK, most_rows)
        panels = n_panels(rows)
        self.logits = np.empty((rows, n_vocab), np.float32)
        self.capped = np.empty((rows if cap > 0 else 0, n_vocab), np.float32)
        self.gp = np.empty(panels * n_vocab * PANEL, np.float32)
        self.xp = np.empty(panels * n_embd * PANEL, np.float32)
        self.hp = np.empty(panels * padded(rank) * PANEL, np.float32)
        self.dhp = np.empty(panels * padded(rank) * PANEL, np.float32)
        self.losses = np.empty(rows, np.float32)

    @staticmethod
    def nbytes(n_vocab: int, n_embd: int, rank: int, most_rows: int, cap: float = 0.0) -> int:
        """Bytes such buffers take (for the memory forecast)."""
        rows = min(CHUNK, most_rows)
        lanes = n_panels(rows) * PANEL
        width = n_vocab * (2 if cap > 0 else 1)
        return 4 * (rows * (width + 1) + lanes * (n_vocab + n_embd + 2 * padded(rank)))


def output_loss(
    w: Weight,
    x: np.ndarray,
    targets: np.ndarray,
    weight: float,
    dx: np.ndarray | None,
    pair: LoraPair | None,
    buffers: LossBuffers,
    floor: float = 0.0,
    cap: float = 0.0,
) -> float:
    """Sum of the rows' losses (unweighted); `dx` `[M, C]` gets the gradient of `weight` times that
    sum.

    x float32 `[M, C]`, targets int32 `[M]`, w `[V, C]`. With `dx` None only the loss is computed.
    `cap`: the soft-cap of the logits (0: none), for which the buffers must have been made.
    """
    total = 0.0
    for m0 in range(0, x.shape[0], buffers.logits.shape[0]):
        xc = x[m0 : m0 + buffers.logits.shape[0]]
        m = len(xc)
        logits, losses = buffers.logits[:m], buffers.losses[:m]
        xp = pack(xc, buffers.xp)
        hp, b = NO_PANELS, NO_PAIR
        if pair is not None:
            hp, b = thin_product(pair.a, xp, pair.scale, buffers.hp), pair.b
        matmul(w, xp, logits, hp=hp, b=b)
        if cap > 0:
            soft_cap(logits, cap)
            buffers.capped[:m] = logits
        cross_entropy(logits, targets[m0 : m0 + m], weight, losses, floor)
        total += float(losses.sum(dtype=np.float64))
        if dx is None:
            continue
        if cap > 0:
            soft_cap_grad(logits, buffers.capped[:m], cap)
        gp = pack(logits, buffers.gp)
        dhp, a = NO_PANELS, NO_PAIR
        if pair is not None:
            dhp, a = thin_product(b, gp, pair.scale, buffers.dhp, transposed=True), pair.a
            if pair.da is not None and pair.db is not None:
                add_pair_gradients(dhp, xc, hp, logits, pair.da, pair.db)
        matmul_grad(w, gp, dx[m0 : m0 + m], dhp=dhp, a=a)
    return total


def _sample(rng: np.random.Generator, size: str, dtype: Any) -> Inputs:
    m, v = {"tiny": (2, 4), "one": (1, 97), "odd": (37, 501), "large": (5, 49152)}[size]
    z = (3 * rng.standard_normal((m, v))).astype(dtype)
    return {"z": z, "targets": rng.integers(0, v, m).astype(np.int32)}


def _losses(z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    losses = np.empty(len(z), np.float32)
    cross_entropy(copy_as_laid_out(z), targets, 1.0, losses)
    return losses


def _gradients(dy: np.ndarray, z: np.ndarray, targets: np.ndarray) -> Gradients:
    check_array("cross_entropy", "dy", dy, z.shape[:1])
    dz, losses = copy_as_laid_out(z), np.empty(len(z), np.float32)
    cross_entropy(dz, targets, 1.0, losses)
    return {"z": dz * dy[:, None]}


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
        why="float32 sums of up to 49152 exponentials, each within 2.7e-7",
        ggml="ggml_cross_entropy_loss, ggml_cross_entropy_loss_back (both with the rows' mean)",
    ),
)
