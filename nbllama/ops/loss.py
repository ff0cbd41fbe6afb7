"""Cross-entropy fused with the output product, so the complete logits `[N, V]` are never stored.

    z = x Wᵀ (+ LoRA)        loss = sum over rows of the cross-entropy of z with the row's target
    dz from `ops.cross_entropy`, overwriting z            dx = dz W (+ LoRA)

Only positions with a target are gathered as rows, so other positions cost nothing. Rows are
processed in chunks of at most `CHUNK` rows, so that W is decoded once for many rows. Each row's
`weight` is 1 / (number of trained tokens in the step), so the sum over micro-batches is the mean
over the step. Preference losses use a different weight for each row (`nbllama.objectives`). If the
model soft-caps its logits (`ops.softcap`), a copy of the capped chunk is kept.

Source: llama.cpp `ggml_cross_entropy_loss`. finetune.cpp calls the tensors t34 and t36.
"""

from __future__ import annotations

import numpy as np

from nbllama.kernels.lanes import PANEL
from nbllama.ops.cross_entropy import cross_entropy
from nbllama.ops.linear.linear import LoraPair
from nbllama.ops.linear.lora import add_outer_packed, outer_product, packed_rows, thin_product
from nbllama.ops.linear.matmul import NO_PAIR, Weight, even, matmul_grad, matmul_packed
from nbllama.ops.linear.panels import NO_PANELS, n_panels, pack
from nbllama.ops.softcap import soft_cap, soft_cap_grad

CHUNK = 192  # maximum number of rows whose logits are in memory at the same time


class LossBuffers:
    """Reusable memory for one chunk: the packed logits and the packed input.

    With a soft-cap `cap`, the logits are stored both before and after the cap. `seen` is None or a
    list. If it is a list, each call that computes a gradient appends its rows' losses to the list
    (float32, one array per chunk). `kept` is None or float32 memory `[M]`, to which each call
    writes the losses of all its rows.
    """

    seen: list[np.ndarray] | None = None
    kept: np.ndarray | None = None

    def __init__(
        self, n_vocab: int, n_embd: int, rank: int, most_rows: int, *, cap: float = 0.0
    ) -> None:
        panels = n_panels(min(CHUNK, most_rows))
        self.logits = np.empty(panels * n_vocab * PANEL, np.float32)
        self.capped = np.empty(self.logits.size if cap > 0 else 0, np.float32)
        self.xp = np.empty(panels * n_embd * PANEL, np.float32)
        self.hp = np.empty(panels * packed_rows(rank) * PANEL, np.float32)
        self.dhp = np.empty(panels * packed_rows(rank) * PANEL, np.float32)
        self.losses = np.empty(panels * PANEL, np.float32)

    @staticmethod
    def nbytes(n_vocab: int, n_embd: int, rank: int, most_rows: int, *, cap: float = 0.0) -> int:
        """Return the size of the buffers in bytes, for the memory forecast."""
        lanes = n_panels(min(CHUNK, most_rows)) * PANEL
        return 4 * lanes * (n_vocab * (2 if cap > 0 else 1) + n_embd + 2 * packed_rows(rank) + 1)


def output_loss(
    w: Weight,
    x: np.ndarray,
    targets: np.ndarray,
    *,
    weight: float | np.ndarray,
    dx: np.ndarray | None,
    pair: LoraPair | None,
    buffers: LossBuffers,
    floor: float = 0.0,
    cap: float = 0.0,
    bias: np.ndarray | None = None,
) -> float:
    """Return the unweighted sum of the rows' losses, and compute the gradient of the weighted sum.

    x is float32 `[M, C]`, targets is int32 `[M]`, and w is `[V, C]`. `weight` is a number or a
    float64 array `[M]` with one weight per row. `dx` `[M, C]` is overwritten with the gradient with
    respect to x. If `dx` is None, only the loss is computed. `floor` is explained in
    `ops.cross_entropy`. `cap` is the soft-cap of the logits (0 means none), and the buffers must
    have been created with the same value. `bias` `[V]` is added to the logits before the soft-cap.
    """
    total, weights = 0.0, np.broadcast_to(np.asarray(weight, np.float64), len(x))
    chunk = even(n_panels(len(x)), buffers.losses.size) * PANEL if len(x) else 1
    for m0 in range(0, len(x), chunk):
        xc, wanted = x[m0 : m0 + chunk], targets[m0 : m0 + chunk]
        m = len(xc)
        xp = pack(xc, buffers.xp)
        size = len(xp) * w.shape[0] * PANEL
        logits = buffers.logits[:size].reshape(len(xp), w.shape[0], PANEL)
        flat = logits.reshape(len(xp), -1)
        hp, b = NO_PANELS, NO_PAIR
        if pair is not None:
            hp, b = thin_product(pair.a, xp, pair.scale, buffers.hp), pair.b
        matmul_packed(w, xp, logits, hp=hp, b=b)
        if bias is not None:
            logits += bias[:, None]
        capped = buffers.capped[:size].reshape(flat.shape) if cap > 0 else flat
        if cap > 0:
            soft_cap(flat, cap)
            capped[:] = flat
        losses = buffers.losses[:m]
        cross_entropy(
            logits, wanted, weight=weights[m0 : m0 + m], losses=losses, floor=floor,
            gradient=dx is not None,
        )  # fmt: skip
        total += float(losses.sum(dtype=np.float64))
        if buffers.kept is not None:
            buffers.kept[m0 : m0 + m] = losses
        if dx is None:
            continue
        if buffers.seen is not None:
            buffers.seen.append(losses.copy())
        if cap > 0:
            soft_cap_grad(flat, capped, cap)
        dhp, a = NO_PANELS, NO_PAIR
        if pair is not None:
            dhp, a = thin_product(b, logits, pair.scale, buffers.dhp, transposed=True), pair.a
            if pair.da is not None and pair.db is not None:
                np.add(pair.da, outer_product(dhp, xc, pair.rank), out=pair.da)
                add_outer_packed(logits, hp, pair.db)
        matmul_grad(w, logits, dx[m0 : m0 + m], dhp=dhp, a=a)
    return total
