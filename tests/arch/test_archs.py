"""Every architecture of the registry: logits against llama.cpp, adapters, merges, the program.

Gradients: tests/arch/test_arch_gradients.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import DENSE, MODELS, random_adapter
from examples.toy_models import decode_to_f32
from nbllama import export_lora, finetune
from nbllama.arch import ARCHS
from nbllama.cli import archs
from nbllama.errors import GGUFError
from nbllama.gguf_io import ValueType, write_gguf
from nbllama.ops.activation import gated
from nbllama.ops.experts.router import NO_BIAS, Gating, route, weights_ref
from nbllama.ops.ungated import NO_NUMBERS, Xielu, ungated, ungated_ref
from tests import oracle
from tests.arch.kinds import by_table, kinds
from tests.conftest import ROOT
from tests.differences import compare, record, relative


# float32 on both sides, sums in different orders: at most 2.2e-6 was measured. Gemma's GELU is a
# step function in llama.cpp (see `gated_by_table`): if our rounding ends on another step, one
# activation is 5e-4 off; 1.8e-5 of the largest logit was measured. A delta net carries its rounding
# from token to token: as much after 257 of them.
def bound_of(name: str) -> float:
    return 1e-4 if by_table(name) or name.startswith("qwen35") else 2e-5


LENGTHS = (1, 2, 33, 257)


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
        ("deepseek2", "this type of mixture-of-experts model is not supported"),
        ("mamba", "recurrent models are not supported"),
        ("qwen3vlmoe", "multimodal models are not supported"),
        ("bert", "do not predict the next token are not supported"),
        ("grok-7", "'grok-7' is not supported"),
    ],
)
def test_other_architectures_are_refused_by_name(arch: str, said: str, tmp_path: Path) -> None:
    """Before anything else in the file is checked: this one has no tensors."""
    path = tmp_path / "m.gguf"
    write_gguf(path, [("general.architecture", arch, ValueType.STRING)], [])
    with pytest.raises(GGUFError, match=said) as caught:
        nbllama.load_model(path)
    assert "supported: llama, " in str(caught.value) and f"'{arch}'" in str(caught.value)


def test_a_deepseek_with_experts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    MODELS["deepseek, dense"].make(path, keys=DENSE | {"leading_dense_block_count": 1})
    with pytest.raises(GGUFError, match=r"leading_dense_block_count'.*mixture-of-experts"):
        nbllama.load_model(path)


@pytest.mark.parametrize("n_layer", [1, 31, 33, 48])
def test_a_baichuan_of_another_depth_is_refused(n_layer: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    MODELS["baichuan, 7B (RoPE)"].make(path, n_layer=n_layer)
    with pytest.raises(GGUFError, match=f"block_count': {n_layer}, .* only with 32 or 40 layers"):
        nbllama.load_model(path)


def tokens_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 288, n).tolist()


def gelu_by_table(x: np.ndarray) -> np.ndarray:
    """GELU as in ggml: from a float16 table (`ggml_vec_geglu_f32`)."""
    half = x.astype(np.float16).astype(np.float64)
    act = ungated_ref(half, "gelu").astype(np.float16).astype(np.float32)
    return np.where(x <= -10, np.float32(0), np.where(x >= 10, x, act))


def gated_by_table(gate: np.ndarray, up: np.ndarray, out: np.ndarray, *, gelu: bool) -> None:
    """The activation as in ggml."""
    if gelu:
        out[:] = gelu_by_table(gate) * up
    else:
        gated(gate, up, out, gelu=False)


def ungated_by_table(
    x: np.ndarray, out: np.ndarray, *, kind: str, numbers: Xielu = NO_NUMBERS
) -> None:
    if kind == "gelu":
        out[:] = gelu_by_table(x)
    else:
        ungated(x, out, kind=kind, numbers=numbers)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our models with ggml's GELU, so that everything else can be compared with tight bounds."""
    monkeypatch.setattr("nbllama.model.block.gated", gated_by_table)
    monkeypatch.setattr("nbllama.model.per_layer.gated", gated_by_table)
    monkeypatch.setattr("nbllama.model.block.ungated", ungated_by_table)


# Difference of the exact GELU from llama.cpp's table, of the largest logit: 5.9e-5 was measured for
# Gemma; 3.0e-4 for the two-matrix layers, whose models have no small norms after them.
EXACT_GELU = 1e-3


@pytest.mark.parametrize("name", [n for n in MODELS if by_table(n)])
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


class TheirChoice:
    """Replace the router's op: llama.cpp's choice of experts, with our weights for it.

    `gap` is how much lower our scores of its experts are than those of ours, of the range of scores
    (root mean squares over the tokens, of the worst block): where experts nearly tie, rounding
    decides, and the logits of two choices cannot be compared.
    """

    def __init__(self, chosen: list[np.ndarray]) -> None:
        self.chosen, self.gap = chosen, 0.0

    def __call__(
        self,
        z: np.ndarray,
        chosen: np.ndarray,
        w: np.ndarray,
        *,
        gating: Gating,
        bias: np.ndarray = NO_BIAS,
    ) -> None:
        route(z, chosen, w, gating=gating, bias=bias)
        scores, theirs = z + bias if bias.size else z, self.chosen.pop(0)
        least = [np.take_along_axis(scores, of, axis=1).min(axis=1) for of in (chosen, theirs)]
        ranges = float(np.linalg.norm(np.ptp(scores, axis=1)))
        self.gap = max(self.gap, float(np.linalg.norm(least[0] - least[1])) / ranges)
        chosen[:] = theirs
        w[:] = weights_ref(z, theirs, gating)


def check_quantised(name: str, types: str, folder: Path) -> None:
    path, tokens = folder / "toy.gguf", tokens_of(33)
    MODELS[name].make_wide(path, types)
    model = nbllama.load_model(path)
    got = nbllama.logits(model, tokens)
    decode_to_f32(path, folder / "f32.gguf")
    with oracle.LlamaModel(folder / "f32.gguf") as theirs:
        compare(f"{name}, {types}", got, theirs.logits(tokens), bound_of(name))
    # Forty layers of rounding add up; and a delta net passes it on from token to token. Weights of
    # experts are one more thing that rounding changes: rounding only the embeddings to 8 bits moves
    # our own Q2_K logits by 1.5 % (qwen3moe), 3 % (ernie4_5-moe), 10 % (qwen35), 20 % (qwen35moe),
    # all with the same choice of experts.
    more = 6 if MODELS[name].deep else 4 if name.startswith(("lfm2", "qwen35", "gemma4")) else 1
    more *= 2 if model.hp.experts else 1
    bound, what = ROUNDED[types] * more, f"{name}, {types}, llama.cpp's rounded activations"
    with oracle.LlamaModel(path) as theirs:
        if model.hp.experts is None:
            record(what, relative(got, theirs.logits(tokens)), bound)
            return
        nodes = theirs.nodes(tokens, lambda n: n.startswith("ffn_moe_topk") or n == "result_output")
    choice = TheirChoice([nodes[f"ffn_moe_topk-{i}"] for i in range(model.hp.n_layer)
                          if model.hp.experts_at(i)])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbllama.model.mixture.route", choice)
        got = nbllama.logits(model, tokens)
    assert not choice.chosen
    record(what, relative(got, nodes["result_output"]), bound)
    # 0.005 and, in qwen35moe, 0.045 were measured; experts chosen at random would give 0.27 to 0.44
    most = 0.1 if name.startswith("qwen35") else 0.01
    record(f"{what}, the choice of experts", choice.gap, most)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("types", ["Q4_K"])
@pytest.mark.parametrize("name", kinds(n for n, thin in MODELS.items() if not thin.deep))
def test_quantised(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("types", list(ROUNDED))
@pytest.mark.parametrize("name", MODELS)
def test_quantised_all(name: str, types: str, tmp_path: Path) -> None:
    check_quantised(name, types, tmp_path)


def test_gpt_oss_as_it_ships(tmp_path: Path) -> None:
    """MXFP4 experts, everything else in 8 bits; with and without an adapter."""
    name, path, lora = "gpt-oss, 20B and 120B", tmp_path / "toy.gguf", tmp_path / "lora.gguf"
    routed = dict.fromkeys(("ffn_gate_exps", "ffn_down_exps", "ffn_up_exps"), "MXFP4")
    thin, tokens = MODELS[name], tokens_of(33)
    thin.make(path, types=routed | {"*": "Q8_0"}, **thin.wide)
    model = nbllama.load_model(path)
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(lora, adapter, model)
    decode_to_f32(path, tmp_path / "f32.gguf")
    with oracle.LlamaModel(tmp_path / "f32.gguf") as theirs:
        for own, more in ((None, []), (adapter, [(lora, 1.0)])):
            wanted = theirs.logits(tokens, lora=more)
            compare(f"{name}, MXFP4", nbllama.logits(model, tokens, own), wanted, 2e-5)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", kinds())
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
        pytest.param("minicpm, with default scales", marks=pytest.mark.slow),
        pytest.param("baichuan, 13B (ALiBi)", marks=pytest.mark.slow),
        pytest.param("lfm2, 350M to 2.6B", marks=pytest.mark.slow),
        pytest.param("qwen35, 0.8B and 2B", marks=pytest.mark.slow),
        pytest.param("gemma4, E2B and E4B", marks=pytest.mark.slow),
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
