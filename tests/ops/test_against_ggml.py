"""Products with LoRA, loss and optimiser against ggml's own ops (real llama.cpp), where there is
more to ask than `tests/kernels` does: any rank and number of tokens, adding to sums, chunks.

Every measured difference is recorded (`tests.differences`), relative to the largest number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbllama.kernels.lanes import PANEL
from nbllama.ops.cross_entropy import cross_entropy, unpacked
from nbllama.ops.linear.linear import Input, LoraPair, linear, linear_grad
from nbllama.ops.linear.matmul import Weight, matmul, matmul_grad
from nbllama.ops.linear.panels import n_panels, pack
from nbllama.ops.loss import LossBuffers, output_loss
from nbllama.opt.adamw import AdamW
from tests import oracle
from tests.differences import compare

# Both sides sum up to a thousand float32 products in their own order: a few units of 2^-24 times
# the square root of the number of terms.
SUM = 5e-6
N_OUT, N_IN = 40, 768


def weight(name: str, seed: int = 5) -> tuple[Weight, oracle.Raw, np.ndarray]:
    """The same random matrix [40, 768] for us and for ggml, and decoded by ggml."""
    type_id = oracle.QUANT_TYPES[name]
    values = np.random.default_rng(seed).standard_normal((N_OUT, N_IN)).astype(np.float32)
    data = oracle.quantize(type_id, values / np.sqrt(N_IN))
    raw = np.frombuffer(data, dtype=np.uint8)
    decoded = oracle.dequantize(type_id, data, values.size).reshape(values.shape)
    return (
        Weight(name, type_id, raw, (N_OUT, N_IN)),
        oracle.Raw(type_id, data, values.shape),
        decoded,
    )


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(x: np.ndarray) -> np.ndarray:
    return pack(x, np.empty(n_panels(len(x)) * PANEL * x.shape[1], np.float32))


def test_add_to_the_output() -> None:
    w, _, decoded = weight("Q4_K")
    x, dy = normal(1, 20, N_IN), normal(2, 20, N_OUT)
    y, dx = normal(3, 20, N_OUT), normal(4, 20, N_IN)
    y0, dx0 = y.copy(), dx.copy()
    matmul(w, packed(x), y, add=True)
    compare("matmul, add", y, y0 + oracle.mul_mat(decoded, x), SUM)
    matmul_grad(w, packed(dy), dx, add=True)
    compare("matmul_grad, add", dx, dx0 + oracle.mul_mat_back(decoded, dy), SUM)


def ggml_lora(
    w: np.ndarray, a: np.ndarray, b: np.ndarray, s: float, x: np.ndarray, dy: np.ndarray
) -> dict[str, np.ndarray]:
    """y, dx, da, db of a linear layer with a LoRA pair, from ggml's mul_mat and out_prod."""
    h = s * oracle.mul_mat(a, x)
    dh = s * oracle.mul_mat_back(b, dy)
    return {
        "y": oracle.mul_mat(w, x) + oracle.mul_mat(b, h),
        "dx": oracle.mul_mat_back(w, dy) + oracle.mul_mat_back(a, dh),
        "da": oracle.ggml("ggml_out_prod", x, dh),
        "db": oracle.ggml("ggml_out_prod", h, dy),
    }


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("n", [1, 4, 5, 16, 130])
def test_linear_with_lora(n: int, rank: int) -> None:
    w, _, decoded = weight("Q4_K")
    x, dy = normal(1, n, N_IN), normal(2, n, N_OUT)
    a, b, s = normal(3, rank, N_IN) / 16, normal(4, N_OUT, rank), 0.7
    wanted = ggml_lora(decoded, a, b, s, x, dy)
    pair = LoraPair(a, b, s, np.zeros_like(a), np.zeros_like(b))
    got = {"y": np.empty((n, N_OUT), np.float32), "dx": np.empty((n, N_IN), np.float32)}
    size = n_panels(n) * PANEL * (N_IN + 64)
    hp = linear(w, pair, Input(x, np.empty(size, np.float32)), got["y"], hidden=None)
    buffers = (np.empty(size, np.float32), np.empty(size, np.float32))
    for times in (1, 2):
        linear_grad(w, pair, dy, x, hp=hp, dx=got["dx"], buffers=buffers)
        got["da"], got["db"] = pair.da, pair.db  # type: ignore[assignment]
        for key, value in got.items():
            # The gradients of the pair are added to what is there.
            factor = times if key in ("da", "db") else 1
            compare(
                f"linear with LoRA, {key}", value, factor * wanted[key].reshape(value.shape), SUM
            )


@pytest.mark.parametrize("floor", [1e-9, 1e-3])
def test_cross_entropy_with_the_floor_of_2023(floor: float) -> None:
    """p' = p (1 - f) + f: the loss is -ln p', the gradient p' - target, which is not its
    derivative. Today's ggml has no floor, so the comparison is with the formula in float64.
    """
    rows, n_vocab, weight = 37, 503, 0.25
    z = normal(1, rows, n_vocab) * 12  # losses up to about 90, far above ln(1e9) = 20.7
    targets = np.random.default_rng(2).integers(0, n_vocab, rows).astype(np.int32)
    wide = z.astype(np.float64)
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p = p * (1 - floor) + floor
    losses, plain = np.empty(rows, np.float32), np.empty(rows, np.float32)
    cross_entropy(packed(z), targets, weight=weight, losses=plain, gradient=False)
    zp = packed(z)
    cross_entropy(zp, targets, weight=weight, losses=losses, floor=floor)
    z = unpacked(zp, rows)
    compare("losses", losses, -np.log(p[np.arange(rows), targets]).astype(np.float32), SUM)
    p[np.arange(rows), targets] -= 1
    compare("gradient", z, (weight * p).astype(np.float32), SUM)
    assert losses.max() < plain.max() - 1
    assert losses.max() == pytest.approx(-np.log(floor), rel=1e-3)


@pytest.mark.parametrize("rank", [0, 4])
def test_output_loss(rank: int) -> None:
    """The fused output product and loss over several chunks of rows, with and without LoRA."""
    w, _, decoded = weight("Q8_0")
    m, rng = 400, np.random.default_rng(6)
    x, targets = normal(1, m, N_IN), rng.integers(0, N_OUT, m).astype(np.int32)
    a, b, s = normal(3, max(rank, 1), N_IN) / 16, normal(4, N_OUT, max(rank, 1)), 0.7
    pair = LoraPair(a, b, s, np.zeros_like(a), np.zeros_like(b)) if rank else None
    z = oracle.mul_mat(decoded, x)
    if pair:
        z = ggml_lora(decoded, a, b, s, x, z)["y"]
    labels, one = np.eye(N_OUT, dtype=np.float32)[targets], np.array([1.0], dtype=np.float32)
    mean = oracle.ggml("ggml_cross_entropy_loss", z, labels)
    dz = oracle.ggml("ggml_cross_entropy_loss_back", one, z, labels)
    dx = np.empty_like(x)
    buffers = LossBuffers(N_OUT, N_IN, rank, m)
    total = output_loss(w, x, targets, weight=1 / m, dx=dx, pair=pair, buffers=buffers)
    compare("output loss", np.array([total / m]), mean, SUM)
    if pair is None:
        compare("output loss, dx", dx, oracle.mul_mat_back(decoded, dz), SUM)
    else:
        wanted = ggml_lora(decoded, a, b, s, x, dz)
        for key, got in (("dx", dx), ("da", pair.da), ("db", pair.db)):
            assert got is not None
            compare(f"output loss with LoRA, {key}", got, wanted[key], SUM)
    again = output_loss(w, x, targets, weight=1 / m, dx=None, pair=pair, buffers=buffers)
    assert again == total


def test_adamw() -> None:
    options: dict[str, Any] = dict(beta1=0.9, beta2=0.99, eps=1e-8, decay=0.1)
    x = normal(1, 8, 50)
    mine = x.copy()
    opt = AdamW({"p": mine}, alpha=0.02, gclip=0.0, **options)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for step, schedule in enumerate((0.5, 1.0, 0.25), start=1):
        g = normal(10 + step, 8, 50)
        x, m, v = oracle.adamw_step(x, g, m, v, step=step, alpha=0.02 * schedule, **options)
        opt.step({"p": g}, schedule)
        for name, got, wanted in (("x", mine, x), ("m", opt.m["p"], m), ("v", opt.v["p"], v)):
            compare(f"adamw, {name}", got, wanted, SUM)
