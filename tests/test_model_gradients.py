"""The whole model's gradient against float64 finite differences of the plain-numpy model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.bound import Bound
from nbllama.data.batch import Batch
from nbllama.lora import SLOTS, Adapter, init_adapter
from nbllama.model import Model, load_model
from nbllama.reference import ReferenceModel, parameters64
from tests.toy_models import make_llama

SLOT_RANKS = {slot.name: 1 + i % 3 for i, slot in enumerate(SLOTS)}
STEP = 1e-5


def _model(folder: Path, **options: Any) -> Model:
    path = folder / "toy.gguf"
    make_llama(path, **options)
    return load_model(path)


def _adapter(model: Model, ranks: dict[str, int], alpha: float = 3.0, lora_r: int = 2) -> Adapter:
    """Random A *and* B: at B = 0 the gradient of A is zero whatever the code does."""
    adapter = init_adapter(model.hp, ranks, alpha, lora_r, 5, model.shapes)
    rng = np.random.default_rng(9)
    for p in adapter.parameters().values():
        p[...] = rng.standard_normal(p.shape) * 0.1
    return adapter


def _batch(model: Model, lengths: tuple[int, ...]) -> Batch:
    rng = np.random.default_rng(1)
    rows = []
    for n in lengths:
        tokens = rng.integers(0, model.hp.n_vocab, n).astype(np.int32)
        targets = rng.integers(0, model.hp.n_vocab, n).astype(np.int32)
        targets[: n // 3] = -1
        rows.append((tokens, targets))
    return Batch.from_rows(rows)


def _gradients(
    model: Model, adapter: Adapter, batch: Batch, checkpointing: bool
) -> tuple[float, dict[str, np.ndarray]]:
    bound = Bound(model, adapter, trained=True)
    acts = model.activations(adapter, batch.n_tokens, batch.n_trained, checkpointing=checkpointing)
    buffers = model.loss_buffers(adapter, batch.n_trained)
    model.forward(bound, acts, batch)
    total = model.loss(bound, acts, buffers, batch, 1 / batch.n_trained, gradient=True)
    model.backward(bound, acts, batch)
    return total / batch.n_trained, bound.grads


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "gqa": (dict(n_head=4, n_head_kv=2), (1, 7, 18)),
    "mha": (dict(n_head=4, n_head_kv=4), (19,)),
    "one token": (dict(n_head=4, n_head_kv=1), (1,)),
    "tied": (dict(tied=True), (5, 12)),
    "biases": (dict(biases=True), (13,)),
    "linear rope": (dict(rope_scaling=("linear", 2.0)), (9, 3)),
    "yarn rope": (dict(rope_scaling=("yarn", 4.0, 16)), (40,)),
    "rope factors": (dict(rope_factors=True), (21,)),
    "quantised": (dict(types="Q8_0"), (6, 11)),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_against_finite_differences(
    tmp_path: Path, case: str, checkpointing: bool
) -> None:
    options, lengths = CASES[case]
    model = _model(tmp_path, **options)
    ranks = dict(SLOT_RANKS)
    if model.hp.tied_output:
        ranks["out"] = 0
    adapter, batch = _adapter(model, ranks), _batch(model, lengths)
    loss, grads = _gradients(model, adapter, batch, checkpointing)
    reference, params = ReferenceModel(model), parameters64(adapter)
    assert loss == pytest.approx(reference.loss(batch, params, adapter.scale), rel=1e-5)
    assert grads.keys() == params.keys()
    rng = np.random.default_rng(3)
    for name, g in grads.items():
        if lengths == (1,) and ("attn_q" in name or "attn_k" in name):
            # one key: its probability is 1 whatever the score, so only rounding is left
            assert np.abs(g).max() < 1e-6, name
            continue
        assert np.abs(g).max() > 0, f"{name}: a gradient of exactly zero proves nothing"
        direction = rng.standard_normal(g.shape)
        direction /= np.linalg.norm(direction)
        sides = []
        for sign in (1, -1):
            moved = dict(params)
            moved[name] = params[name] + sign * STEP * direction
            sides.append(reference.loss(batch, moved, adapter.scale))
        numeric = (sides[0] - sides[1]) / (2 * STEP)
        # float32 kernels: errors of about 1e-6 of the gradient's length; 1e-4 leaves room
        assert float((g * direction).sum()) == pytest.approx(
            numeric, abs=1e-4 * float(np.linalg.norm(g)) + 1e-8
        ), name
