"""The plain-numpy model: its backward pass against its loss, and the kernels against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.gradcheck.check import slope
from nbllama.lora.pairs import Adapter
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model
from nbllama.model.reference import ReferenceModel, parameters64
from tests.model.test_model_gradients import CASES
from tests.train.toy_runs import random_batch, toy_adapter, toy_model

STEP = 1e-5

# One of each thing that a block can do: ALiBi, biases, norms and scales, soft-caps, fused matrices.
ARCHS = (
    "baichuan, 13B (ALiBi)",
    "qwen2, 0.5B (tied)",
    "minicpm, with scales in the file",
    "gemma2, 2B and 9B",
    "gemma3, 270M and 1B",
    "phi3, medium (GQA)",
)


def check(model: Model, adapter: Adapter, lengths: tuple[int, ...]) -> None:
    batch = random_batch(model, lengths)
    reference, params = ReferenceModel(model), parameters64(adapter)
    loss, wanted = reference.loss_and_gradients(batch, params, adapter.scale)
    assert loss == reference.loss(batch, params, adapter.scale)
    ours, grads = loss_and_gradients(model, adapter, batch, checkpointing=False)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert list(wanted) == list(grads)
    rng = np.random.default_rng(4)
    looked_at = {"0", "1", str(model.hp.n_layer - 1)}  # a difference costs two passes of the model
    for name, g in wanted.items():
        if lengths == (1,) and ("attn_q" in name or "attn_k" in name):
            # one key: its probability is 1 for any score
            assert np.abs(g).max() < 1e-15 and np.abs(grads[name]).max() < 1e-6, name
            continue
        size = float(np.linalg.norm(g))
        assert size > 0, f"{name}: a gradient of exactly zero proves nothing"
        # float32 kernels; a norm's B sums numbers that can cancel
        assert np.linalg.norm(grads[name] - g) < 1e-4 * size + 1e-7, name
        if name.startswith("blk.") and name.split(".")[1] not in looked_at:
            continue
        direction = rng.standard_normal(g.shape)
        direction /= np.linalg.norm(direction)
        numeric = slope(
            reference, batch, params, adapter.scale, direction={name: direction}, h=STEP
        )
        # central differences in float64: h^2 = 1e-10 of third derivatives, and rounding of 1e-11
        assert abs((g * direction).sum() - numeric) < 1e-6 * size + 1e-9, name


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_page(case: str, tmp_path: Path) -> None:
    options, lengths = CASES[case]
    model = toy_model(tmp_path, **options)
    check(model, toy_adapter(model), lengths)


@pytest.mark.parametrize("name", ARCHS)
def test_gradients_of_other_architectures(name: str, tmp_path: Path) -> None:
    thin, path = MODELS[name], tmp_path / "toy.gguf"
    thin.make(path, **({"n_layer": 2} if name.startswith("gemma3") else {}))
    model = nbllama.load_model(path)
    check(model, random_adapter(model, norms=True), (1, 7, 22))


def test_a_planted_error_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbllama.model import reference_ops

    monkeypatch.setattr(reference_ops, "rope_ref", lambda x, p, c, s, halves, inverse: x)
    model = toy_model(tmp_path)
    with pytest.raises(AssertionError):
        check(model, toy_adapter(model), (7, 18))
