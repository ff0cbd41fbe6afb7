"""Mixtures of experts in the passes: bits, decoded weights, counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
import nbllama.peek
from examples.toy_archs import MODELS, random_adapter
from nbllama.data.batch import Batch
from nbllama.model.bound import Bound
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model
from nbllama.ops.linear.matmul import Weight
from tests.train.toy_runs import random_batch

QWEN = "qwen3moe, 30B-A3B and 235B-A22B"
ERNIE = "ernie4_5-moe, 21B-A3B and 300B-A47B"
SHARED = "qwen2moe, 1.5-MoE A2.7B and 57B-A14B"


def model_of(name: str, folder: Path) -> Model:
    MODELS[name].make(folder / "m.gguf")
    return nbllama.load_model(folder / "m.gguf")


@pytest.mark.parametrize("name", [QWEN, SHARED])
def test_a_token_has_the_same_bits_whatever_else_is_in_its_batch(name: str, tmp_path: Path) -> None:
    """An expert then has other tokens, and another number of them."""
    model = model_of(name, tmp_path)
    adapter = random_adapter(model, norms=False)
    rows = [np.random.default_rng(i).integers(3, 288, n) for i, n in enumerate((61, 23, 90))]

    def stream(*parts: np.ndarray) -> np.ndarray:
        batch = Batch.from_rows([(p.astype(np.int32), p.astype(np.int32)) for p in parts])
        acts = model.forward_activations(adapter, batch.n_tokens)
        model.forward(Bound(model, adapter), acts, batch)
        return acts.x(model.hp.n_layer, batch.n_tokens).copy()

    together = stream(*rows)
    np.testing.assert_array_equal(stream(rows[0]), together[:61])
    np.testing.assert_array_equal(stream(rows[1]), together[61:84])
    np.testing.assert_array_equal(stream(rows[2][:37]), together[84 : 84 + 37])


def test_only_experts_that_a_token_takes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(QWEN, tmp_path)
    adapter, batch = random_adapter(model, norms=False), random_batch(model, (3, 2))
    read: set[tuple[int, int]] = set()
    real = Model.expert

    def expert(self: Model, layer: int, tensor: str, number: int) -> Weight:
        read.add((layer, number))
        return real(self, layer, tensor, number)

    monkeypatch.setattr(Model, "expert", expert)
    with nbllama.peek.watch(model, "ffn_moe_weights*,ffn_moe_probs*") as seen:
        _, grads = loss_and_gradients(model, adapter, batch, True)
    wanted = set()
    for layer in range(model.hp.n_layer):
        p = seen[f"ffn_moe_probs-{layer}"]
        top = np.argsort(-p, axis=1, kind="stable")[:, :5]
        wanted |= {(layer, int(e)) for e in top.reshape(-1)}
    assert read == wanted and len(wanted) < 2 * 24
    name = "blk.0.ffn_up_exps.weight.lora_b"
    idle = [e for e in range(24) if (0, e) not in wanted]
    assert idle and not grads[name][idle].any()
    assert all(grads[name][e].any() for layer, e in wanted if layer == 0)


def test_the_load_is_counted_once_a_token(tmp_path: Path) -> None:
    """Not again when a block repeats its forward pass; not in a block without experts."""
    model = model_of(ERNIE, tmp_path)
    adapter, batch = random_adapter(model, norms=False), random_batch(model, (9, 22))
    bound = Bound(model, adapter, trained=True)
    acts = model.activations(adapter, batch.n_tokens, batch.n_trained, checkpointing=True)
    model.forward(bound, acts, batch)
    model.loss(
        bound, acts, model.loss_buffers(adapter, batch.n_trained), batch, weight=1.0, gradient=True
    )
    model.backward(bound, acts, batch)
    assert bound.load is not None
    assert bound.load.sum(axis=1).tolist() == [0, 5 * batch.n_tokens, 5 * batch.n_tokens]
    bound.zero_grads()
    assert not bound.load.any()


def test_memory_is_that_of_the_active_experts(tmp_path: Path) -> None:
    """A mixture saves as much as a dense model with the total width of a token's experts."""
    sizes = {}
    for used in (2, 4):
        options = MODELS[QWEN].options
        MODELS[QWEN].make(tmp_path / "m.gguf", keys=options["keys"] | {"expert_used_count": used})
        model = nbllama.load_model(tmp_path / "m.gguf")
        adapter = random_adapter(model, norms=False)
        sizes[used] = model.activations(adapter, 512, 512, checkpointing=False).nbytes
    more = sizes[4] - sizes[2]
    assert 2 * 2 * 512 * 2 * 40 * 4 <= more <= 1.2 * 2 * 2 * 512 * 2 * 40 * 4
