"""Greedy texts, shifted contexts and mixed adapters against llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama.generation.predictor import Predictor
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.session import Session
from nbllama.lora.mix import mix
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from tests.differences import compare
from tests.export.merge_models import adapter_for
from tests.oracle import LlamaModel, decode_to_f32

BOUND = 1e-5
TIE = 1e-3  # of the largest logit: such a choice can go either way
PROMPTS = (
    "Once upon a time", "The capital of France is", "def fibonacci(n):", "Water boils at",
    "My favourite colour is blue because", "In 1969, the first", "The quick brown fox",
    "To make bread you need", "Question: What is 2 + 2?\nAnswer:", "She opened the door and",
    "The three laws of motion are", "import numpy as np\n", "Dear Sir or Madam,",
    "A list of fruits: apple,", "The weather today is", "In the year 2050, people will",
    "Photosynthesis is the process by which", "Roses are red,", "The president of the",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip


class Step(NamedTuple):
    """A token that llama.cpp chose, its second choice, and by how much of the largest logit they
    differ."""

    token: int
    second: int
    gap: float


def theirs(
    model: LlamaModel, prompt: Sequence[int], n: int, lora: Sequence[tuple[Path, float]]
) -> list[Step]:
    out: list[Step] = []
    for row in model.greedy_logits(prompt, n, lora):
        second, first = (int(i) for i in np.argsort(row)[-2:])
        out.append(Step(first, second, float((row[first] - row[second]) / np.abs(row).max())))
    return out


def ours(model: Model, adapter: Adapter | None, prompt: Sequence[int], n: int) -> list[int]:
    sampler = Sampler(SamplingParams(temp=0.0), model.hp.n_vocab, 512)
    predictor = Predictor(model, adapter, sampler, 512)
    predictor.append(prompt)
    eog = model.tokenizer.eog_ids
    return [token for token in predictor.draw(n, eog) if token not in eog]


def differs_at(found: Sequence[int], wanted: Sequence[Step]) -> int | None:
    """The first place where the texts differ; there llama.cpp must have had a tie."""
    for i, (token, step) in enumerate(zip(found, wanted, strict=False)):
        if token != step.token:
            assert token == step.second and step.gap < TIE, (i, token, step)
            return i
    assert len(found) == len(wanted)
    return None


def stored(folder: Path, base: Path, **options: Any) -> list[tuple[Path, float]]:
    """Two adapters in files, with scales."""
    out = []
    for name, seed, rank, scale in (("a", 1, 4, 0.4), ("b", 2, 7, 0.8)):
        path = folder / f"{name}.gguf"
        made = adapter_for(base, seed=seed, rank=rank, alpha=8.0, **options)
        nbllama.save_adapter(path, made, nbllama.load_model(base))
        out.append((path, scale))
    return out


def mixed(model: Model, lora: Sequence[tuple[Path, float]]) -> Adapter:
    return mix([(nbllama.load_adapter(path, model), scale) for path, scale in lora])


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize(
    "options",
    [dict(n_head_kv=2), dict(n_head_kv=4), dict(tied=True), dict(rope_scaling=("yarn", 4.0, 32))],
    ids=["GQA", "MHA", "tied", "yarn"],
)
def test_two_adapters_on_toy_models(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """For any weight type, the same as llama.cpp with the weights in float32."""
    base = tmp_path / "base.gguf"
    make_llama(base, types=kind, **options)
    decode_to_f32(base, tmp_path / "f32.gguf")
    lora = stored(tmp_path, base)
    model = nbllama.load_model(tmp_path / "f32.gguf")
    adapter = mixed(model, lora)
    with LlamaModel(tmp_path / "f32.gguf") as llama:
        for seed in range(3):
            prompt = np.random.default_rng(seed).integers(3, 320, 9).tolist()
            differs_at(ours(model, adapter, prompt, 40), theirs(llama, prompt, 40, lora))
        text = np.random.default_rng(5).integers(3, 320, 60).tolist()
        wanted = llama.logits(text, lora)
    compare("mixed", nbllama.logits(model, text, adapter), wanted, BOUND)
    of_file = nbllama.load_model(base)
    compare("quantised", nbllama.logits(of_file, text, mixed(of_file, lora)), wanted, BOUND)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(rope_scaling=("yarn", 4.0, 32)), dict(rope_scaling=("linear", 2.0))],
    ids=["plain", "yarn", "linear"],
)
def test_a_shifted_context_is_llama_cpp_s(tmp_path: Path, options: dict[str, Any]) -> None:
    make_llama(tmp_path / "base.gguf", n_layer=3, **options)
    text = np.random.default_rng(5).integers(3, 320, 60).tolist()
    model = nbllama.load_model(tmp_path / "base.gguf")
    session = Session(model, None, 64)
    session.feed(text[:50])
    session.shift(3, 20)
    # llama.cpp's shift multiplies all keys by YaRN's magnitude once more
    tables = model.rope_tables(1)
    assert tables is not None
    cos, sin = (table[:1] for table in tables)
    session.cache.k[:, :30] *= np.hypot(cos, sin)[0, 0]
    found = session.feed(text[50:])
    with LlamaModel(tmp_path / "base.gguf") as llama:
        wanted = llama.shifted_logits(text[:50], 3, 20, text[50:])[-1]
        compare("shifted", found, wanted, BOUND)
        assert np.abs(llama.logits(text[:3] + text[23:])[-1] - wanted).max() > 0.01


@pytest.fixture(scope="module")
def demo(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demo model in float32, with two adapters."""
    folder = tmp_path_factory.mktemp("demo")
    decode_to_f32(demo_model, folder / "f32.gguf")
    yield folder / "f32.gguf"
    (folder / "f32.gguf").unlink()


def greedy_on_the_demo_model(demo: Path, prompts: Sequence[str], n: int) -> None:
    model = nbllama.load_model(demo)
    lora = stored(demo.parent, demo, strength=0.03)
    adapter = mixed(model, lora)
    ties, changed = [], 0
    with LlamaModel(demo, n_threads=1) as llama:
        for text in prompts:
            prompt = model.tokenizer.encode(text, add_special=True, parse_special=True)
            wanted = theirs(llama, prompt, n, lora)
            at = differs_at(ours(model, adapter, prompt, n), wanted)
            if at is not None:
                ties.append((text, at, wanted[at]))
            plain = theirs(llama, prompt, n, ())
            changed += [s.token for s in plain] != [s.token for s in wanted]
    for tie in ties:
        print("a tie:", *tie)
    assert len(ties) <= 2
    assert changed > len(prompts) / 2  # the adapters change the text


@pytest.mark.slow
def test_greedy_on_the_demo_model(demo: Path) -> None:
    greedy_on_the_demo_model(demo, PROMPTS[:3], 16)


@pytest.mark.slow
def test_greedy_on_the_demo_model_at_length(demo: Path) -> None:
    greedy_on_the_demo_model(demo, PROMPTS, 64)


@pytest.mark.slow
def test_top_1_agreement_on_the_quantised_demo_model(demo: Path, demo_model: Path) -> None:
    """llama.cpp rounds activations to 8 bits there; so both differ a little from the same weights
    in float32.
    """
    model = nbllama.load_model(demo_model)
    lora = stored(demo.parent, demo_model, strength=0.03)
    adapter = mixed(model, lora)
    same = float32 = n = 0
    with LlamaModel(demo_model, n_threads=1) as llama, LlamaModel(demo, n_threads=1) as exact:
        for text in PROMPTS:
            prompt = model.tokenizer.encode(text, add_special=True, parse_special=True)
            text_ids = prompt + exact.greedy(prompt, 64, lora)
            tops = [
                rows.argmax(axis=1)
                for rows in (
                    nbllama.logits(model, text_ids, adapter),
                    llama.logits(text_ids, lora),
                    exact.logits(text_ids, lora),
                )
            ]
            n += len(text_ids)
            same += int((tops[0] == tops[1]).sum())
            float32 += int((tops[0] == tops[2]).sum())
    print(f"{n} places: top-1 agreement {same / n:.4f}, with float32 {float32 / n:.4f}")
    assert same / n > 0.95 and float32 / n > 0.99
