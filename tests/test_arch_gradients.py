"""Every architecture of the registry: gradients through the whole model, LoRA on every tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama.arch import Hparams
from nbllama.bound import Bound
from nbllama.data.batch import Batch
from nbllama.lora import Adapter
from nbllama.model import Model
from nbllama.reference import ReferenceModel, parameters64
from tests.arch_models import MODELS, random_adapter

STEP = 1e-5
Grouping = Callable[[list[str], Hparams], list[list[str]]]
Parameters = Mapping[str, np.ndarray]


def batch_of(model: Model, lengths: tuple[int, ...]) -> Batch:
    rng = np.random.default_rng(1)
    rows = []
    for n in lengths:
        tokens, targets = rng.integers(0, model.hp.n_vocab, (2, n)).astype(np.int32)
        targets[: n // 3] = -1
        rows.append((tokens, targets))
    return Batch.from_rows(rows)


def gradients(
    model: Model, adapter: Adapter, batch: Batch, checkpointing: bool
) -> tuple[float, dict[str, np.ndarray]]:
    bound = Bound(model, adapter, trained=True)
    acts = model.activations(adapter, batch.n_tokens, batch.n_trained, checkpointing=checkpointing)
    buffers = model.loss_buffers(adapter, batch.n_trained)
    model.forward(bound, acts, batch)
    total = model.loss(bound, acts, buffers, batch, 1 / batch.n_trained, gradient=True)
    model.backward(bound, acts, batch)
    return total / batch.n_trained, bound.grads


def one_by_one(names: list[str], hp: Hparams) -> list[list[str]]:
    """Each parameter alone; of a deep model those of some blocks, of each kind that it has."""
    blocks: Collection[int] = range(hp.n_layer)
    if hp.n_layer > 8:
        blocks = {0, 1, hp.window_period - 1, hp.n_layer // 2, hp.n_layer - 1}
    return [[n] for n in names if not n.startswith("blk.") or int(n.split(".")[1]) in blocks]


def by_kind(names: list[str], hp: Hparams) -> list[list[str]]:
    """The same parameter of all blocks together."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        kinds.setdefault(kind, []).append(name)
    return list(kinds.values())


def length_of(name: str, grads: Parameters, params: Parameters) -> float:
    """Length of a gradient, in which its errors are measured.

    A norm's `b` has one row: its gradient sums n_embd numbers to `rank`, and what rounding does to
    them is as large when they cancel. So of it the length that the sum could have: from that of the
    weight's gradient, which `a` got times `b`, times that of `a`.
    """
    own = float(np.linalg.norm(grads[name]))
    if len(grads[name]) > 1 or not name.endswith(".lora_b"):
        return own
    a = name.removesuffix("b") + "a"
    weight = np.linalg.norm(grads[a]) / np.linalg.norm(params[name])
    return max(own, float(weight * np.linalg.norm(params[a])))


def check_gradients(model: Model, groups: Grouping) -> None:
    """Along random directions, against float64 differences through the plain-numpy model."""
    adapter, batch = random_adapter(model, norms=True), batch_of(model, (1, 7, 22))
    loss, grads = gradients(model, adapter, batch, False)
    again = gradients(model, adapter, batch, True)
    assert again[0] == loss
    for name, g in grads.items():
        np.testing.assert_array_equal(again[1][name], g, err_msg=f"{name} with checkpointing")
        assert np.abs(g).max() > 0, f"{name}: a gradient of exactly zero proves nothing"
    reference, params = ReferenceModel(model), parameters64(adapter)
    assert loss == pytest.approx(reference.loss(batch, params, adapter.scale), rel=1e-5)
    assert grads.keys() == params.keys()
    rng = np.random.default_rng(3)
    for names in groups(list(grads), model.hp):
        moves = {name: rng.standard_normal(grads[name].shape) for name in names}
        length = np.sqrt(sum((m * m).sum() for m in moves.values()))
        ends = []
        for sign in (1, -1):
            moved = {name: params[name] + sign * STEP / length * m for name, m in moves.items()}
            ends.append(reference.loss(batch, params | moved, adapter.scale))
        numeric = (ends[0] - ends[1]) / (2 * STEP)
        got = sum(float((grads[name] * m).sum()) for name, m in moves.items()) / length
        size = math.hypot(*(length_of(name, grads, params) for name in names))
        # float32 kernels: errors of about 1e-6 of the gradient's length; 1e-4 leaves room
        assert got == pytest.approx(numeric, abs=1e-4 * size + 1e-8), names


# Deep for the scale of their queries alone, which `test_logits` sees.
SLOW = ("gemma2, 27B", "gemma3, 27B, text")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS],
)
def test_gradients(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), by_kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_one_by_one(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), one_by_one)
