"""The oracle's single ggml ops against plain numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests import oracle
from tests.differences import compare
from tests.oracle import ggml

# float32 sums of about a hundred terms, in an order that is not ours.
BOUND = 2e-6
RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x.astype(np.float64)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rotated(
    x: np.ndarray, positions: np.ndarray, base: float, factors: np.ndarray, halves: bool
) -> np.ndarray:
    """x [N, H, D] turned by angle position * base^(-2i/D) / factors[i] in each pair i."""
    d = x.shape[-1]
    angle = positions[:, None] * base ** (-np.arange(0, d, 2) / d) / factors
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    x = x.astype(np.float64)
    first, second = np.split(x, 2, axis=-1) if halves else (x[..., ::2], x[..., 1::2])
    a, b = first * cos - second * sin, first * sin + second * cos
    return np.concatenate([a, b], axis=-1) if halves else np.stack([a, b], axis=-1).reshape(x.shape)


def test_get_rows_and_back() -> None:
    table, rows = normal(40, 64), np.array([3, 39, 3, 0], dtype=np.int32)
    np.testing.assert_array_equal(ggml("ggml_get_rows", table, rows), table[rows])
    type_id = oracle.QUANT_TYPES["Q8_0"]
    raw = oracle.quantize(type_id, table)
    decoded = oracle.dequantize(type_id, raw, table.size).reshape(table.shape)
    got = ggml("ggml_get_rows", oracle.Raw(type_id, raw, table.shape), rows)
    np.testing.assert_array_equal(got, decoded[rows])
    dy, wanted = normal(4, 64), np.zeros_like(table)
    np.add.at(wanted, rows, dy)
    compare("oracle get_rows_back", ggml("ggml_get_rows_back", dy, rows, table), wanted, BOUND)


@pytest.mark.parametrize("name", oracle.QUANT_TYPES)
def test_mul_mat_of_each_type(name: str) -> None:
    type_id, w, x = oracle.QUANT_TYPES[name], normal(24, 256) / 16, normal(7, 256)
    raw = oracle.quantize(type_id, w)
    decoded = oracle.dequantize(type_id, raw, w.size).reshape(w.shape)
    # Activations are rounded to the companion type of the weights: 8 bits, or F16's or BF16's.
    bound = {"F32": BOUND, "F16": 1e-3, "BF16": 1e-2}.get(name, 0.02)
    got = oracle.mul_mat(oracle.Raw(type_id, raw, w.shape), x)
    compare(f"oracle mul_mat {name}", got, x @ decoded.T, bound)
    if name not in ("F16", "BF16"):  # ggml's out_prod takes float32 or quantised weights
        dy = normal(7, 24)
        got = oracle.mul_mat_back(oracle.Raw(type_id, raw, w.shape), dy)
        compare(f"oracle out_prod {name}", got, dy @ decoded, BOUND)


def test_rms_norm_and_back() -> None:
    x, dy, eps = normal(5, 96), normal(5, 96), 1e-5
    x64 = x.astype(np.float64)
    r = 1 / np.sqrt((x64**2).mean(-1, keepdims=True) + eps)
    compare("oracle rms_norm", ggml("ggml_rms_norm", x, eps), x64 * r, BOUND)
    wanted = r * dy - x64 * r**3 * (x64 * dy).mean(-1, keepdims=True)
    compare("oracle rms_norm_back", ggml("ggml_rms_norm_back", dy, x, eps), wanted, BOUND)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("with_factors", [False, True])
def test_rope_and_back(halves: bool, with_factors: bool) -> None:
    x, positions = normal(9, 3, 16), np.array([0, 1, 2, 3, 4, 0, 1, 2, 100], dtype=np.int32)
    factors = np.geomspace(1, 8, 8, dtype=np.float32) if with_factors else None
    options = (16, 2 if halves else 0, 0, 10000.0, 0.5, 0.0, 1.0, 32.0, 1.0)
    divide = np.ones(8) if factors is None else factors
    wanted = rotated(x, positions * 0.5, 10000.0, divide, halves)
    # Angles up to 50 are kept in float32, whose steps there are 4e-6.
    bound = 1e-5
    compare(
        "oracle rope_ext", ggml("ggml_rope_ext", x, positions, factors, *options), wanted, bound
    )
    back = ggml("ggml_rope_ext_back", wanted.astype(np.float32), positions, factors, *options)
    compare("oracle rope_ext_back", back, x, bound)


def test_soft_max_with_mask_and_alibi_and_back() -> None:
    h, n, scale, max_bias = 6, 11, 0.25, 8.0
    scores, dy = normal(h, n, n), normal(h, n, n)
    i = np.arange(n, dtype=np.float32)
    distance = np.where(i[None, :] <= i[:, None], -np.abs(i[None, :] - i[:, None]), -np.inf)
    # Six heads: the first four take every slope of a power of two, the others the odd ones between.
    slopes = np.concatenate([0.25 ** np.arange(1, 5), 0.5 ** np.arange(1, 4, 2)])[:, None, None]
    mask = distance.astype(np.float32)
    wanted = softmax(scores * scale + slopes * mask)
    got = ggml("ggml_soft_max_ext", scores, mask, scale, max_bias)
    compare("oracle soft_max_ext", got, wanted, BOUND)
    plain = softmax(scores * scale)
    back = ggml("ggml_soft_max_ext_back", dy, plain.astype(np.float32), scale, 0.0)
    inner = (plain * dy).sum(-1, keepdims=True)
    compare("oracle soft_max_ext_back", back, scale * plain * (dy - inner), BOUND)


def test_activations_and_back() -> None:
    x, up, dy = normal(5, 33) * 4, normal(5, 33), normal(5, 33)
    compare("oracle silu", ggml("ggml_silu", x), silu(x), BOUND)
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    compare("oracle silu_back", ggml("ggml_silu_back", dy, x), dy * s * (1 + x * (1 - s)), BOUND)
    compare("oracle swiglu_split", ggml("ggml_swiglu_split", x, up), silu(x) * up, BOUND)
    both = np.concatenate([x, up], axis=1)
    compare("oracle swiglu", ggml("ggml_swiglu", both), silu(x) * up, BOUND)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(np.float64) ** 3))
    # ggml looks gelu up in a table of F16 (11 bits).
    compare("oracle gelu", ggml("ggml_gelu", x), 0.5 * x * (1 + tanh), 1e-3)


def test_cross_entropy_loss_and_back() -> None:
    logits, labels = normal(6, 50) * 3, np.eye(50, dtype=np.float32)[RNG.integers(0, 50, 6)]
    p = softmax(logits)
    wanted = np.array([-np.log((p * labels).sum(-1)).mean()])
    got = ggml("ggml_cross_entropy_loss", logits, labels)
    compare("oracle cross_entropy_loss", got, wanted, BOUND)
    back = ggml("ggml_cross_entropy_loss_back", np.array([2.0], dtype=np.float32), logits, labels)
    compare("oracle cross_entropy_loss_back", back, 2 * (p - labels) / 6, BOUND)


def test_adamw_step() -> None:
    x, g, m, v = normal(64), normal(64), normal(64) / 10, normal(64) ** 2 / 100
    got = oracle.adamw_step(
        x, g, m, v, step=3, alpha=0.01, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.1
    )
    m2, v2 = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g.astype(np.float64) ** 2
    update = m2 / (1 - 0.9**3) / (np.sqrt(v2 / (1 - 0.99**3)) + 1e-8)
    wanted = (x * (1 - 0.01 * 0.1) - 0.01 * update, m2, v2)
    for name, a, b in zip("xmv", got, wanted, strict=True):
        compare(f"oracle opt_step_adamw {name}", a, b, BOUND)


def test_graph_refuses_what_it_cannot_hold() -> None:
    with oracle.Graph() as g:
        with pytest.raises(ValueError, match="dtype"):
            g.tensor(np.zeros(3))
        with pytest.raises(ValueError, match="dimensions"):
            g.tensor(np.zeros((1, 1, 1, 1, 1), dtype=np.float32))
        with pytest.raises(ValueError, match="bytes are not"):
            g.tensor(oracle.Raw(oracle.QUANT_TYPES["Q4_0"], b"", (1, 32)))
