"""The whole model's gradient against float64 finite differences of the plain-numpy model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.gradcheck.check import slope
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.reference import ReferenceModel, parameters64
from tests.train.toy_runs import random_batch, toy_adapter, toy_model

STEP = 1e-5

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
    model = toy_model(tmp_path, **options)
    adapter, batch = toy_adapter(model), random_batch(model, lengths)
    loss, grads = loss_and_gradients(model, adapter, batch, checkpointing)
    reference, params = ReferenceModel(model), parameters64(adapter)
    assert loss == pytest.approx(reference.loss(batch, params, adapter.scale), rel=1e-5)
    assert grads.keys() == params.keys()
    rng = np.random.default_rng(3)
    for name, g in grads.items():
        if lengths == (1,) and ("attn_q" in name or "attn_k" in name):
            # one key: its probability is 1 for any score, so only rounding is left
            assert np.abs(g).max() < 1e-6, name
            continue
        assert np.abs(g).max() > 0, f"{name}: a gradient of exactly zero proves nothing"
        direction = rng.standard_normal(g.shape)
        direction /= np.linalg.norm(direction)
        numeric = slope(
            reference, batch, params, adapter.scale, direction={name: direction}, h=STEP
        )
        # float32 kernels: errors of about 1e-6 of the gradient norm; 1e-4 leaves room
        assert float((g * direction).sum()) == pytest.approx(
            numeric, abs=1e-4 * float(np.linalg.norm(g)) + 1e-8
        ), name
