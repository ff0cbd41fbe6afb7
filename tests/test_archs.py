"""Every architecture of the registry: logits against llama.cpp, gradients, adapters, merges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama import export_lora, finetune
from nbllama.arch import ARCHS
from nbllama.bound import Bound
from nbllama.cli import archs
from nbllama.data.batch import Batch
from nbllama.errors import GGUFError
from nbllama.gguf_io import ValueType, write_gguf
from nbllama.lora import Adapter
from nbllama.model import Model
from nbllama.ops.activation import gated, gated_ref
from nbllama.reference import ReferenceModel, parameters64
from nbllama.slots import EVERY_SLOT, without_tensor
from tests import oracle
from tests.arch_models import DENSE, MODELS
from tests.conftest import ROOT
from tests.differences import compare, record, relative
from tests.toy_models import decode_to_f32


# float32 on both sides, each sum in its own order: 2.2e-6 at most was measured. Gemma's GELU is a
# staircase in llama.cpp (see `gated_by_table`): where a rounding of ours ends on another step, one
# activation is 5e-4 off; 1.8e-5 of the largest logit was measured.
def bound_of(name: str) -> float:
    return 1e-4 if name.startswith("gemma") else 2e-5


LENGTHS = (1, 2, 33, 257)
STEP = 1e-5


def test_the_list_is_what_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {f"{row.name}, {kind}" for row in ARCHS.values() for kind in row.checked}
    assert listed == set(MODELS)
    assert all(name.startswith(f"{thin.arch}, ") for name, thin in MODELS.items())
    assert finetune.main(["--list-archs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in ARCHS.values():
        (line,) = (line for line in lines if line.startswith(f"{row.name} "))
        assert line.endswith("; ".join(row.checked)) and row.checked
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert archs.markdown() in page


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("qwen3moe", "mixture-of-experts models are not supported"),
        ("mamba", "recurrent models are not supported"),
        ("qwen2vl", "multimodal models are not supported"),
        ("bert", "do not predict the next token are not supported"),
        ("grok-7", "'grok-7' is not supported"),
    ],
)
def test_other_architectures_are_refused_by_name(arch: str, said: str, tmp_path: Path) -> None:
    """Before anything else of the file is looked at: this one has no tensors."""
    path = tmp_path / "m.gguf"
    write_gguf(path, [("general.architecture", arch, ValueType.STRING)], [])
    with pytest.raises(GGUFError, match=said) as caught:
        nbllama.load_model(path)
    assert "supported are llama, " in str(caught.value) and f"'{arch}'" in str(caught.value)


def test_a_deepseek_with_experts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    MODELS["deepseek, dense"].make(path, keys=DENSE | {"leading_dense_block_count": 1})
    with pytest.raises(GGUFError, match="leading_dense_block_count'.*mixture-of-experts"):
        nbllama.load_model(path)


@pytest.mark.parametrize("n_layer", [1, 31, 33, 48])
def test_a_baichuan_of_another_depth_is_refused(n_layer: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    MODELS["baichuan, 7B (RoPE)"].make(path, n_layer=n_layer)
    with pytest.raises(GGUFError, match=f"block_count': {n_layer}: .* 32, 40 layers only"):
        nbllama.load_model(path)


def tokens_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 288, n).tolist()


def gated_by_table(gate: np.ndarray, up: np.ndarray, out: np.ndarray, *, gelu: bool) -> None:
    """The activation as ggml has it: GELU from a table of halves (`ggml_vec_geglu_f32`)."""
    if not gelu:
        gated(gate, up, out, gelu=False)
        return
    x = gate.astype(np.float16).astype(np.float64)
    act = gated_ref(x, np.ones_like(x), True).astype(np.float16).astype(np.float32)
    out[:] = np.where(gate <= -10, 0, np.where(gate >= 10, gate, act)) * up


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our models with ggml's GELU, so that all else can be compared tightly."""
    monkeypatch.setattr("nbllama.block.gated", gated_by_table)


# What the exact GELU differs from llama.cpp's table, of the largest logit: 5.9e-5 was measured.
EXACT_GELU = 2e-4


@pytest.mark.parametrize("name", [n for n in MODELS if n.startswith("gemma")])
def test_exact_gelu(name: str, tmp_path: Path) -> None:
    path, tokens = tmp_path / "toy.gguf", tokens_of(257)
    MODELS[name].make(path)
    got = nbllama.logits(nbllama.load_model(path), tokens)
    with oracle.LlamaModel(path) as theirs:
        record(f"{name}, exact GELU", relative(got, theirs.logits(tokens)), EXACT_GELU)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    MODELS[name].make(path)
    model = nbllama.load_model(path)
    assert model.hp.arch == MODELS[name].arch
    with oracle.LlamaModel(path) as theirs:
        for n in LENGTHS:
            tokens = tokens_of(n)
            compare(name, nbllama.logits(model, tokens), theirs.logits(tokens), bound_of(name))


# llama.cpp on the quantised file itself rounds activations to 8 bits, and to halves for F16.
ROUNDED = {"F16": 5e-3, "Q8_0": 0.05, "Q4_K": 0.05, "Q2_K": 0.05}


def check_quantised(name: str, types: str, folder: Path) -> None:
    path, tokens = folder / "toy.gguf", tokens_of(33)
    MODELS[name].make_wide(path, types)
    got = nbllama.logits(nbllama.load_model(path), tokens)
    decode_to_f32(path, folder / "f32.gguf")
    with oracle.LlamaModel(folder / "f32.gguf") as theirs:
        compare(f"{name}, {types}", got, theirs.logits(tokens), bound_of(name))
    with oracle.LlamaModel(path) as theirs:
        direct = relative(got, theirs.logits(tokens))
    # forty layers of rounding add up
    bound = ROUNDED[types] * (6 if MODELS[name].deep else 1)
    record(f"{name}, {types}, llama.cpp's rounded activations", direct, bound)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("types", ["Q4_K"])
@pytest.mark.parametrize("name", [n for n, thin in MODELS.items() if not thin.deep])
def test_quantised(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("types", list(ROUNDED))
@pytest.mark.parametrize("name", MODELS)
def test_quantised_all(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


def random_adapter(model: Model, norms: bool) -> Adapter:
    """Random A and B of different ranks on every tensor that takes a pair."""
    missing = without_tensor(model.shapes)
    if model.hp.tied_output and not norms:
        missing.add("tok_embd")  # llama.cpp cannot run such an adapter
    ranks = {
        slot.name: 0 if slot.name in missing or (slot.kind == "norm" and not norms) else 1 + i % 3
        for i, slot in enumerate(EVERY_SLOT)
    }
    adapter = nbllama.init_adapter(model, rank=2, alpha=3, ranks=ranks)
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


# Deep for the scale of their queries alone, which `test_logits` sees.
SLOW = ("gemma2, 27B", "gemma3, 27B, text")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.long] * (n in SLOW)) for n in MODELS],
)
def test_gradients(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), single=False)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_gradients_one_by_one(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    check_gradients(nbllama.load_model(tmp_path / "toy.gguf"), single=True)


@pytest.mark.usefixtures("table")
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
        compare(f"{name}, adapter", got, theirs.logits(tokens, lora=[(lora, 1.0)]), bound_of(name))
        assert relative(got, theirs.logits(tokens)) > 0.05
    words = ["--model-base", path, "--model-out", merged, "--lora", lora]
    assert export_lora.main([str(w) for w in words]) == 0
    with oracle.LlamaModel(merged) as theirs:
        compare(f"{name}, merged", got, theirs.logits(tokens), bound_of(name))
    compare(
        f"{name}, merged", nbllama.logits(nbllama.load_model(merged), tokens), got, bound_of(name)
    )


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "name",
    [
        "phi3, mini",
        "gemma3, 270M and 1B",
        pytest.param("minicpm, without them", marks=(pytest.mark.slow, pytest.mark.long)),
        pytest.param("baichuan, 13B (ALiBi)", marks=(pytest.mark.slow, pytest.mark.long)),
    ],
)
def test_program(name: str, tmp_path: Path) -> None:
    """Trained by the program with its own defaults, resumed, and run by llama.cpp."""
    path, text, tokens = tmp_path / "toy.gguf", tmp_path / "text.txt", tokens_of(33)
    MODELS[name].make(path)
    text.write_text("the hen and the heron are on the other end of it\n" * 40, encoding="utf-8")
    words = ["--model-base", str(path), "--train-data", str(text), "--ctx", "16", "-b", "2"]
    words += ["--checkpoint-out", f"{tmp_path}/c-ITERATION.gguf", "--save-every", "2"]
    words += ["--lora-out", f"{tmp_path}/lora-ITERATION.gguf", "--adam-alpha", "0.1", "--seed", "7"]
    assert finetune.main([*words, "--warmup", "0", "--adam-iter", "4"]) == 0
    again = ["--checkpoint-in", f"{tmp_path}/c-2.gguf", "--lora-out", f"{tmp_path}/again.gguf"]
    assert finetune.main([*words, *again, "--warmup", "0", "--adam-iter", "2"]) == 0
    model = nbllama.load_model(path)
    trained = nbllama.load_adapter(tmp_path / "lora-4.gguf", model)
    resumed = nbllama.load_adapter(tmp_path / "again.gguf", model)
    for key, p in trained.parameters().items():
        np.testing.assert_array_equal(resumed.parameters()[key], p, err_msg=key)
    got = nbllama.logits(model, tokens, trained)
    with oracle.LlamaModel(path) as theirs:
        lora = [(tmp_path / "lora-4.gguf", 1.0)]
        compare(f"{name}, trained", got, theirs.logits(tokens, lora=lora), bound_of(name))
        assert relative(got, theirs.logits(tokens)) > 1e-3
