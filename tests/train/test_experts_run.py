"""A run with pairs on routed experts: saved, resumed, read by llama.cpp and as a PEFT folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama import finetune
from nbllama.arch import ARCHS
from nbllama.errors import CheckpointError, UsageError
from tests import oracle
from tests.differences import compare, relative

QWEN = "qwen3moe, 30B-A3B and 235B-A22B"
SHARED = "qwen2moe, 1.5-MoE A2.7B and 57B-A14B"


def words_of(folder: Path, name: str = QWEN) -> list[str]:
    MODELS[name].make(folder / "m.gguf")
    text = folder / "text.txt"
    text.write_text("the hen and the heron are on the other end of it\n" * 40, encoding="utf-8")
    words = ["--model-base", str(folder / "m.gguf"), "--train-data", str(text), "--ctx", "16"]
    words += ["-b", "2", "--checkpoint-out", f"{folder}/c-ITERATION.gguf", "--save-every", "2"]
    words += ["--lora-out", f"{folder}/lora-ITERATION.gguf", "--adam-alpha", "0.1", "--seed", "7"]
    return [*words, "--warmup", "0", "--rank-out", "0", "--log", f"{folder}/log.jsonl"]


def test_a_run_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(tmp_path)
    assert finetune.main([*words, "--rank-experts", "2", "--adam-iter", "4"]) == 0
    again = ["--checkpoint-in", f"{tmp_path}/c-2.gguf", "--lora-out", f"{tmp_path}/again.gguf"]
    assert finetune.main([*words, *again, "--adam-iter", "2"]) == 0
    model = nbllama.load_model(tmp_path / "m.gguf")
    trained = nbllama.load_adapter(tmp_path / "lora-4.gguf", model)
    resumed = nbllama.load_adapter(tmp_path / "again.gguf", model)
    assert trained.pairs["blk.0.ffn_down_exps.weight"].b.shape == (24, 64, 2)
    for key, p in trained.parameters().items():
        np.testing.assert_array_equal(resumed.parameters()[key], p, err_msg=key)
    tokens = list(range(5, 38))
    got = nbllama.logits(model, tokens, trained)
    with oracle.LlamaModel(tmp_path / "m.gguf") as theirs:
        lora = [(tmp_path / "lora-4.gguf", 1.0)]
        compare("experts, trained", got, theirs.logits(tokens, lora=lora), 2e-5)
        assert relative(got, theirs.logits(tokens)) > 1e-3
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    loads = [row for row in rows if row.get("event") == "experts"]
    assert [row["iter"] for row in loads] == [1, 2, 3, 4, 3, 4]
    assert all(len(row["busiest"]) == 2 and min(row["busiest"]) >= 1 for row in loads)
    capsys.readouterr()
    other = ["--checkpoint-in", f"{tmp_path}/c-2.gguf", "--rank-experts", "3", "--adam-iter", "2"]
    assert finetune.main([*words, *other]) == 5
    assert "gate_exps" in capsys.readouterr().err


REFUSED = [
    (QWEN, ["--rank-experts", "2", "--lora-out", "a.bin"], "a .bin file cannot store LoRA"),
    (
        QWEN,
        ["--rank-experts", "2", "--lora-dropout", "0.1"],
        "--lora-dropout and --rank-experts cannot be combined",
    ),
    ("llama, 7B to 30B", ["--rank-experts", "2"], "--rank-experts: this model has no experts"),
]


@pytest.mark.parametrize(("name", "more", "said"), REFUSED)
def test_refused(
    name: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune.main([*words_of(tmp_path, name), "--adam-iter", "2", *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", [QWEN, SHARED, "llama, Mixtral (experts)"])
def test_a_peft_folder_has_a_module_for_each_expert(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "m.gguf")
    model = nbllama.load_model(tmp_path / "m.gguf")
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(f"{tmp_path}/peft/", adapter, model)
    from nbllama.adapter.safetensors import read_safetensors

    names = set(read_safetensors(str(tmp_path / "peft" / "adapter_model.safetensors"))[0])
    module = ARCHS[model.hp.arch].hf_modules["ffn_up_exps"].replace("{e}", "7")
    for half in ("A", "B"):
        assert f"base_model.model.model.layers.1.{module}.lora_{half}.weight" in names
    read = nbllama.load_adapter(tmp_path / "peft", model)
    assert read.pairs.keys() == adapter.pairs.keys()
    tokens = list(range(5, 38))
    wanted = nbllama.logits(model, tokens, adapter)
    compare("experts, PEFT", nbllama.logits(model, tokens, read), wanted, 2e-6)


def test_a_folder_has_no_place_for_experts_of_one_tensor(tmp_path: Path) -> None:
    MODELS["gpt-oss, 20B and 120B"].make(tmp_path / "m.gguf")
    model = nbllama.load_model(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match=r"cannot store the pair for blk\.0\.ffn_gate_exps"):
        nbllama.save_adapter(f"{tmp_path}/peft/", random_adapter(model, norms=False), model)


def test_a_pair_of_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    MODELS[QWEN].make(tmp_path / "m.gguf")
    model = nbllama.load_model(tmp_path / "m.gguf")
    nbllama.save_adapter(tmp_path / "a.gguf", random_adapter(model, norms=False), model)
    options = MODELS[QWEN].options
    keys = options["keys"] | {"expert_count": 25}
    experts = options["experts"] | {"count": 25}
    MODELS[QWEN].make(tmp_path / "other.gguf", keys=keys, experts=experts)
    other = nbllama.load_model(tmp_path / "other.gguf")
    with pytest.raises(
        CheckpointError, match=r"for a \(24, 40, 64\) matrix, .* has \(25, 40, 64\)"
    ):
        nbllama.load_adapter(tmp_path / "a.gguf", other)
