"""Models whose blocks differ in size, and use each other's keys and values (Gemma 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.arch import BlockSizes, Hparams, Rope
from nbllama.data.batch import Batch
from nbllama.errors import CheckpointError, GGUFError, UsageError
from nbllama.export.inputs import BlockInputs
from nbllama.generation.batch import generate_many
from nbllama.generation.memory import session_memory
from nbllama.generation.session import Session, generate
from nbllama.generation.token_program import has_program
from nbllama.gradcheck.__main__ import main as gradcheck
from nbllama.gradcheck.part import part_of, usual_layers
from nbllama.lora.pairs import Adapter, Pair
from nbllama.model.activations import Arena
from nbllama.model.block import block_backward
from nbllama.model.passes import Model
from nbllama.train import probe
from tests import oracle
from tests.differences import compare
from tests.train.toy_runs import random_rows, trainer

SMALL, LARGE = "gemma4, E2B and E4B", "gemma4, 31B"
TOKENS = np.random.default_rng(1).integers(3, 288, 60).tolist()


def made(folder: Path, name: str = SMALL, **options: Any) -> Model:
    MODELS[name].make(folder / "m.gguf", **options)
    return nbllama.load_model(folder / "m.gguf")


@pytest.fixture(scope="module", params=[SMALL, LARGE])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return made(tmp_path_factory.mktemp("blocks"), request.param)


def test_sizes(tmp_path: Path) -> None:
    hp: Hparams = made(tmp_path).hp
    assert hp.blocks == (
        BlockSizes(2, 16, 16, 96, 20, 0, 0),
        BlockSizes(2, 16, 16, 96, 20, 1, 1),
        BlockSizes(1, 24, 24, 96, 0, 2, 2),
        BlockSizes(2, 16, 16, 192, 20, 3, 1),
        BlockSizes(2, 16, 16, 192, 20, 4, 1),
        BlockSizes(1, 24, 24, 192, 0, 5, 2),
    )
    assert (hp.attention_layers, hp.lent, hp.most_frozen) == ([0, 1, 2], [1, 2], 1)
    assert (hp.n_per_layer, hp.attn_scale, hp.logit_softcap) == (16, 1.0, 5.0)
    assert hp.rope_at(0) == Rope(10000.0, 1.0, n_rot=16, factors=False)
    assert hp.rope_at(2) == Rope(1e6, 1.0)
    hp = made(tmp_path, LARGE).hp
    assert (hp.attention_layers, hp.lent, hp.most_frozen) == ([0, 1, 2, 3], [], 4)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.shared_kv_layers", 2, "2: block 4 would use the keys and values of block 2"),
        ("attention.shared_kv_layers", 5, "5, but must be from 0 to 4"),
        ("attention.value_length_swa", 24, "24, but keys have size 16"),
        ("rope.dimension_count_swa", 18, "from 2 to the head size (16)"),
        ("attention.head_count_kv", [3, 1, 1, 1, 1, 1], "3 does not divide head_count 4"),
        ("attention.head_count_kv", [2, 2, 1, 4, 2, 1], "a different kind of attention"),
        ("attention.sliding_window_pattern", [True, False], "2 values for 6 layers"),
        ("feed_forward_length", [96, 96], "2 values for 6 layers"),
        ("feed_forward_length", [0] * 6, "0, but must be from 1 to "),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError) as caught:
        made(tmp_path, keys={key: value})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "'gemma4." in str(caught.value)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"expert_count'.*mixture-of-experts models are not supp"):
        made(tmp_path, keys={"expert_count": 8})


def test_matrices_that_no_block_uses(tmp_path: Path) -> None:
    """Blocks with keys of their own in the file, which nothing uses: not here, not in llama.cpp."""
    model = made(tmp_path, idle_keys=True)
    assert model.hp.warnings == (
        "9 key and value tensors are not used: their blocks reuse the keys and values of earlier "
        "blocks",
    )
    adapter = random_adapter(model, norms=True)
    assert "blk.2.attn_k.weight" in adapter.pairs and "blk.3.attn_k.weight" not in adapter.pairs
    with oracle.LlamaModel(tmp_path / "m.gguf") as llama:
        compare("idle keys", nbllama.logits(model, TOKENS), llama.logits(TOKENS), 1e-3)
    a, b = np.ones((1, 64), np.float32), np.ones((32, 1), np.float32)
    wrong = Adapter("gemma4", 1.0, 1, {"blk.3.attn_k.weight": Pair(a, b)})
    with pytest.raises(CheckpointError, match="the base model has no such tensor"):
        nbllama.logits(model, TOKENS, wrong)


def test_an_irregular_pattern(tmp_path: Path) -> None:
    windows = (False, True, True, False, True, False, False)
    model = made(tmp_path, windows=windows, shared=3)
    assert model.hp.lent == [2, 3] and model.hp.blocks[4].kv_from == 2
    with oracle.LlamaModel(tmp_path / "m.gguf") as llama:
        compare("irregular", nbllama.logits(model, TOKENS), llama.logits(TOKENS), 1e-3)


def test_peft(tmp_path: Path) -> None:
    """Names of Hugging Face's modules, and back."""
    model = made(tmp_path)
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(f"{tmp_path}/peft/", adapter, model)
    again = nbllama.load_adapter(f"{tmp_path}/peft/", model).parameters()
    assert again.keys() == adapter.parameters().keys()
    assert any("inp_gate" in name for name in again) and any(".proj." in name for name in again)
    compare(
        "peft", nbllama.logits(model, TOKENS, nbllama.load_adapter(f"{tmp_path}/peft/", model)),
        nbllama.logits(model, TOKENS, adapter), 1e-5,
    )  # fmt: skip


# Text, token by token


def test_steps_give_the_same(model: Model) -> None:
    whole = Session(model, None, 64, exact=True).feed(TOKENS[:41])
    for steps in ((6, 5, 22, 8), (1, 2, 30, 7, 1)):
        session, start = Session(model, None, 64, exact=True), 0
        for n in steps:
            logits = session.feed(TOKENS[start : start + n])
            start += n
        np.testing.assert_allclose(logits, whole, rtol=0, atol=2e-5)


def test_a_program_runs_one_token(model: Model) -> None:
    assert has_program(model)
    adapter = random_adapter(model, norms=False)
    session = Session(model, adapter, 64, exact=True)
    session.feed(TOKENS[:30])
    for i in range(30, 40):
        wanted = nbllama.logits(model, TOKENS[: i + 1], adapter)[-1]
        got = session.feed(TOKENS[i : i + 1])
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5)


def test_several_texts_at_once_are_each_alone(model: Model) -> None:
    prompts = [TOKENS[:9] + TOKENS[20 : 20 + n] for n in (1, 4, 7)]
    together = generate_many(model, prompts, 6)
    assert together == [generate(model, prompt, 6, exact=True) for prompt in prompts]


def test_memory_of_a_session(model: Model) -> None:
    session = Session(model, None, 64)
    told = session_memory(model, None, 64, step=64, threads=1)
    assert told.cache == session.cache.nbytes
    assert told.activations == session._acts.nbytes


def test_tokens_are_cut_out_of_all_blocks(model: Model) -> None:
    session = Session(model, None, 64, exact=True)
    session.feed(TOKENS[:20])
    session.truncate(12)
    got = session.feed(TOKENS[12:25])
    wanted = Session(model, None, 64, exact=True).feed(TOKENS[:25])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


# Blocks that run alone


def test_second_moments_of_two_batches(tmp_path: Path) -> None:
    """Block by block, each batch with its own keys, values and embeddings."""
    model = made(tmp_path)
    batches = [
        Batch.from_rows([(np.array(t, np.int32), np.full(len(t), -1, np.int32))])
        for t in (TOKENS[:33], TOKENS[33:])
    ]
    both, alone = (
        BlockInputs(model, None, batches),
        [BlockInputs(model, None, [b]) for b in batches],
    )
    for _ in range(model.hp.n_layer):
        for inputs in (both, *alone):
            inputs.advance()
        assert sorted(both.moments) == [0, 1, 2, 3, 4, 5]
        for number, got in both.moments.items():
            wanted = np.tril(alone[0].moments[number] + alone[1].moments[number])
            bound = 1e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(np.tril(got), wanted, rtol=0, atol=bound)


def test_a_part_of_the_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = made(tmp_path)
    assert usual_layers(model) == [0, 1, 2, 3, 5]
    part = part_of(model, [1, 2, 5])
    assert [of.kv_from for of in part.hp.blocks] == [0, 1, 1] and part.hp.lent == [1]
    with pytest.raises(UsageError, match="block 4 uses the keys and values of block 1"):
        part_of(model, [0, 4])
    assert gradcheck(["--threads", "1", "-m", str(tmp_path / "m.gguf")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("blocks 0, 1, 2, 3, 5; ") and "inp_gate" in out and "WRONG" not in out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_probe_reads_no_memory_that_nothing_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """It times single blocks, and some read the keys of others that have not run."""
    allocate, backward = Arena.__init__, block_backward

    def with_nan(arena: Arena, nbytes: int) -> None:
        allocate(arena, nbytes)
        arena.memory.fill(np.nan)

    seen = []

    def watched(model: Model, layer: int, bound: Any, acts: Any, **how: Any) -> None:
        backward(model, layer, bound, acts, **how)
        seen.append(layer)
        assert np.isfinite(acts.shared("dx", how["batch"].n_tokens)).all(), layer

    monkeypatch.setattr(Arena, "__init__", with_nan)
    monkeypatch.setattr(probe, "block_backward", watched)
    base = made(tmp_path)
    adapter = random_adapter(base, norms=False)
    t = trainer(base, adapter, random_rows(base, (12, 9)), checkpointing=checkpointing)
    probe.compile_kernels(t)
    probe.step_seconds(t)
    assert any(base.hp.sizes_at(layer).kv_from != layer for layer in seen)
