"""Every architecture of the registry: logits against llama.cpp, gradients, adapters, merges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama import export_lora
from nbllama.bound import Bound
from nbllama.data.batch import Batch
from nbllama.lora import Adapter
from nbllama.model import Model
from nbllama.reference import ReferenceModel, parameters64
from nbllama.slots import SLOTS, base_names
from tests import oracle
from tests.arch_models import MODELS
from tests.differences import compare, record, relative
from tests.toy_models import decode_to_f32

# The bound that was set is 1e-4 of the largest logit; 1e-6 to 1e-5 is what float32 leaves.
BOUND = 1e-4
LENGTHS = (1, 2, 33, 257)
STEP = 1e-5


def tokens_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 288, n).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    MODELS[name].make(path)
    model = nbllama.load_model(path)
    assert model.hp.arch == MODELS[name].arch
    with oracle.LlamaModel(path) as theirs:
        for n in LENGTHS:
            tokens = tokens_of(n)
            compare(name, nbllama.logits(model, tokens), theirs.logits(tokens), BOUND)


# llama.cpp on the quantised file itself rounds activations to 8 bits, and to halves for F16.
ROUNDED = {"F16": 5e-3, "Q8_0": 0.05, "Q4_K": 0.05, "Q2_K": 0.05}


def check_quantised(name: str, types: str, folder: Path) -> None:
    path, tokens = folder / "toy.gguf", tokens_of(33)
    MODELS[name].make_wide(path, types)
    got = nbllama.logits(nbllama.load_model(path), tokens)
    decode_to_f32(path, folder / "f32.gguf")
    with oracle.LlamaModel(folder / "f32.gguf") as theirs:
        compare(f"{name}, {types}", got, theirs.logits(tokens), BOUND)
    with oracle.LlamaModel(path) as theirs:
        direct = relative(got, theirs.logits(tokens))
    # forty layers of rounding add up
    bound = ROUNDED[types] * (6 if MODELS[name].deep else 1)
    record(f"{name}, {types}, llama.cpp's rounded activations", direct, bound)


@pytest.mark.parametrize("types", ["Q4_K"])
@pytest.mark.parametrize("name", [n for n, thin in MODELS.items() if not thin.deep])
def test_quantised(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("types", list(ROUNDED))
@pytest.mark.parametrize("name", MODELS)
def test_quantised_all(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


def random_adapter(model: Model, norms: bool) -> Adapter:
    """Random A and B of different ranks on every tensor that takes a pair."""
    names = {name for _, name in base_names(model.hp.n_layer) if name in model.shapes}
    used = {slot.name for slot, name in base_names(1) if name in names}
    ranks = {
        slot.name: 1 + i % 3
        for i, slot in enumerate(SLOTS)
        if slot.name in used and (norms or slot.kind != "norm")
    }
    if model.hp.tied_output and not norms:
        del ranks["tok_embd"]  # llama.cpp cannot run such an adapter
    adapter = nbllama.init_adapter(model, rank=2, alpha=3, ranks={s.name: 0 for s in SLOTS} | ranks)
    rng = np.random.default_rng(9)
    for p in adapter.parameters().values():
        p[...] = rng.standard_normal(p.shape) * (0.3 if len(p) < 4 else 0.1)
    return adapter


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


def groups_of(names: list[str], single: bool) -> list[list[str]]:
    """Parameters that are moved together: each alone, or the same one of all blocks."""
    if single:
        return [[name] for name in names]
    kinds: dict[str, list[str]] = {}
    for name in names:
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        kinds.setdefault(kind, []).append(name)
    return list(kinds.values())


def check_gradients(model: Model, single: bool) -> None:
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
    for names in groups_of(list(grads), single):
        moves = {name: rng.standard_normal(grads[name].shape) for name in names}
        length = np.sqrt(sum((m * m).sum() for m in moves.values()))
        ends = []
        for sign in (1, -1):
            moved = {name: params[name] + sign * STEP / length * m for name, m in moves.items()}
            ends.append(reference.loss(batch, params | moved, adapter.scale))
        numeric = (ends[0] - ends[1]) / (2 * STEP)
        got = sum(float((grads[name] * m).sum()) for name, m in moves.items()) / length
        size = np.sqrt(sum((grads[name].astype(np.float64) ** 2).sum() for name in names))
        # float32 kernels: errors of about 1e-6 of the gradient's length; 1e-4 leaves room
        assert got == pytest.approx(numeric, abs=1e-4 * float(size) + 1e-8), names


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), single=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_one_by_one(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), single=True)


@pytest.mark.parametrize("name", MODELS)
def test_adapter_and_merge(name: str, tmp_path: Path) -> None:
    """An adapter on every matrix: the same in llama.cpp, and merged into the model."""
    path, lora, merged = (tmp_path / f"{x}.gguf" for x in ("toy", "lora", "merged"))
    tokens = tokens_of(33)
    MODELS[name].make(path)
    model = nbllama.load_model(path)
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(lora, adapter, model)
    got = nbllama.logits(model, tokens, adapter)
    with oracle.LlamaModel(path) as theirs:
        compare(f"{name}, adapter", got, theirs.logits(tokens, lora=[(lora, 1.0)]), BOUND)
        assert relative(got, theirs.logits(tokens)) > 0.05
    words = ["--model-base", path, "--model-out", merged, "--lora", lora]
    assert export_lora.main([str(w) for w in words]) == 0
    with oracle.LlamaModel(merged) as theirs:
        compare(f"{name}, merged", got, theirs.logits(tokens), BOUND)
    compare(f"{name}, merged", nbllama.logits(nbllama.load_model(merged), tokens), got, BOUND)
