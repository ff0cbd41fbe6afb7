"""Every architecture of the registry: gradients through the whole model, LoRA on every tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.arch import Hparams
from nbllama.gradcheck.check import Parameters, slope
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model
from nbllama.model.reference import ReferenceModel, parameters64
from tests.arch.kinds import kinds
from tests.train.toy_runs import random_batch

STEP = 1e-5
Grouping = Callable[[list[str], Hparams], list[list[str]]]


def one_by_one(names: list[str], hp: Hparams) -> list[list[str]]:
    """Each parameter alone; for a deep model, those of some blocks of each kind."""
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
    """The norm of a gradient, the unit of its errors.

    A norm's `b` has one row: its gradient sums n_embd numbers to `rank`, and their rounding errors
    are as large if they cancel. So its unit is the norm that the sum could have: that of the
    weight's gradient (`a` has it times `b`) times the norm of `a`.
    """
    own = float(np.linalg.norm(grads[name]))
    if len(grads[name]) > 1 or not name.endswith(".lora_b"):
        return own
    a = name.removesuffix("b") + "a"
    weight = np.linalg.norm(grads[a]) / np.linalg.norm(params[name])
    return max(own, float(weight * np.linalg.norm(params[a])))


def check_gradients(model: Model, groups: Grouping) -> None:
    """Along random directions, against float64 differences through the plain-numpy model."""
    adapter, batch = random_adapter(model, norms=True), random_batch(model, (1, 7, 22))
    loss, grads = loss_and_gradients(model, adapter, batch, False)
    again = loss_and_gradients(model, adapter, batch, True)
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
        direction = {name: m / length for name, m in moves.items()}
        numeric = slope(reference, batch, params, adapter.scale, direction=direction, h=STEP)
        got = sum(float((grads[name] * d).sum()) for name, d in direction.items())
        size = math.hypot(*(length_of(name, grads, params) for name in names))
        # float32 kernels: errors of about 1e-6 of the gradient norm; 1e-4 leaves room
        assert got == pytest.approx(numeric, abs=1e-4 * size + 1e-8), names


# Deep only for the scale of their queries, or wide for their heads; `test_logits` covers both.
SLOW = ("gemma2, 27B", "gemma3, 27B, text", "llama, 70B (64 heads, 8 KV heads)")


@pytest.mark.parametrize("name", kinds(also_slow=SLOW))
def test_gradients(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), by_kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_one_by_one(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), one_by_one)
