"""Cross-entropy, and the output layer with which it is fused."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllama.ops.cross_entropy import (
    cross_entropy,
    cross_entropy_grad_ref,
    cross_entropy_ref,
)
from nbllama.ops.linear.matmul import matmul_ref
from nbllama.ops.loss import LossBuffers, output_loss
from tests.kernels.case import ROUNDED, Arrays, Run, case, normal
from tests.kernels.panels import to_panels, unpacked
from tests.kernels.products import Layer, times, times_back
from tests.oracle import Graph

# A row's exponentials are summed in float32: next to one near 1, small ones lose digits.
VOCABULARY_SUM = 2e-5


@case("cross_entropy", "products", cross_entropy, bound=VOCABULARY_SUM, unit="GB/s",
      llama_bound=VOCABULARY_SUM,
      llama="ggml_cross_entropy_loss, ggml_cross_entropy_loss_back",
      shape="128 rows of 49152 logits")  # fmt: skip
def _cross_entropy(size: str) -> Run:
    m, v = {"one": (1, 97), "odd": (37, 2503), "large": (128, 49152)}[size]
    start = 4 * normal(1, m, v)
    targets = np.random.default_rng(2).integers(0, v, m).astype(np.int32)
    packed, losses = to_panels(start, v), np.empty(m, np.float32)
    zp = np.empty_like(packed)

    def ours() -> Arrays:
        np.copyto(zp, packed)
        cross_entropy(zp, targets, weight=1 / m, losses=losses)
        return {"losses": losses, "dz": zp}

    def reference(z: np.ndarray, targets: np.ndarray) -> Arrays:
        mean = np.array([cross_entropy_ref(z, targets).mean()])
        return {"mean": mean, "dz": cross_entropy_grad_ref(1 / m, z, targets)}

    def theirs(g: Graph) -> dict[str, Any]:
        logits, labels = g.tensor(start), g.tensor(np.eye(v, dtype=np.float32)[targets])
        one = np.array([1.0], np.float32)
        return {
            "mean": g.apply("ggml_cross_entropy_loss", logits, labels),
            "dz": g.apply("ggml_cross_entropy_loss_back", one, logits, labels),
        }

    return Run(
        {"z": start, "targets": targets},
        ours,
        reference,
        theirs,
        8 * start.size,
        lambda found: {
            "mean": found["losses"].mean(keepdims=True),
            "dz": unpacked(found["dz"], m, v),
        },
    )


@case("output layer and loss", "products", output_loss, bound=VOCABULARY_SUM, unit="GF/s",
      llama_bound=ROUNDED,
      llama="ggml_mul_mat, ggml_cross_entropy_loss, ggml_cross_entropy_loss_back, ggml_out_prod",
      shape="128 rows, 576 inputs, 49152 outputs, Q8_0, loss and dx")  # fmt: skip
def _output_loss(size: str) -> Run:
    m, c, v = {"one": (1, 64, 97), "odd": (37, 96, 1003), "large": (128, 576, 49152)}[size]
    w, x = Layer("Q8_0", v, c), normal(1, m, c) / 4  # logits of about 3
    targets = np.random.default_rng(2).integers(0, v, m).astype(np.int32)
    buffers, dx = LossBuffers(v, c, 0, m), np.empty_like(x)

    def ours() -> Arrays:
        total = output_loss(w.ours, x, targets, weight=1 / m, dx=dx, pair=None, buffers=buffers)
        return {"mean": np.array([total / m]), "dx": dx}

    def reference(x: np.ndarray, w: np.ndarray, targets: np.ndarray) -> Arrays:
        z = matmul_ref(x, w)
        dx = cross_entropy_grad_ref(1 / m, z, targets) @ w
        return {"mean": np.array([cross_entropy_ref(z, targets).mean()]), "dx": dx}

    def theirs(g: Graph) -> dict[str, Any]:
        z = times(g, w.theirs, x)
        labels = g.tensor(np.eye(v, dtype=np.float32)[targets])
        one = np.array([1.0], np.float32)
        dz = g.apply("ggml_cross_entropy_loss_back", one, z, labels)
        return {
            "mean": g.apply("ggml_cross_entropy_loss", z, labels),
            "dx": times_back(g, w.theirs, dz),
        }

    inputs = {"x": x, "w": w.decoded, "targets": targets}
    return Run(inputs, ours, reference, theirs, 4 * m * c * v)
