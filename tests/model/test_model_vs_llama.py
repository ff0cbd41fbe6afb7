"""Logits of whole models against real llama.cpp.

The tight comparison is with llama.cpp on the same model decoded to F32, where it rounds nothing;
on the quantised file itself llama.cpp rounds every activation to 8 bits, which is measured and
bounded apart. Differences are relative to the largest logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import decode_to_f32, make_llama
from tests import oracle
from tests.differences import compare, record, relative
from tests.rare import rare

# float32 on both sides, sums in different orders: under 1e-6 was measured on two layers, 2.3e-6
# on the thirty of the demo model. A wrong term causes 1e-3 or more.
BOUND = 1e-5
# The effect of llama.cpp's rounding of activations, compared with its float32 path.
ROUNDED = {"F32": BOUND, "F16": 2e-3, "BF16": 2e-2}


def random_tokens(n: int, n_vocab: int = 320) -> list[int]:
    return np.random.default_rng(n).integers(0, n_vocab, n).tolist()


def decoded_logits(path: Path, folder: Path, tokens: list[int], **options: Any) -> np.ndarray:
    """llama.cpp's logits on the F32 copy of a model."""
    decode_to_f32(path, folder / "f32.gguf")
    with oracle.LlamaModel(folder / "f32.gguf", **options) as model:
        return model.logits(tokens)


@pytest.mark.parametrize("name", [rare(name) for name in oracle.QUANT_TYPES])
def test_quant_types(name: str, tmp_path: Path) -> None:
    path, tokens = tmp_path / "toy.gguf", random_tokens(33)
    make_llama(path, n_layer=1, n_embd=256, n_ff=512, types=name)
    got = nbllama.logits(nbllama.load_model(path), tokens)
    compare(f"model {name}", got, decoded_logits(path, tmp_path, tokens), BOUND)
    with oracle.LlamaModel(path) as model:
        direct = relative(got, model.logits(tokens))
    record(f"model {name}, llama.cpp's rounded activations", direct, ROUNDED.get(name, 0.05))


VARIANTS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "small vocabulary": {"n_layer": 1, "n_vocab": 64},
    "mha": {"n_head_kv": 4},
    "mqa": {"n_head_kv": 1},
    "tied": {"tied": True},
    "head size not n_embd / n_head": {"head_dim": 32},
    "attention biases": {"biases": True},
    "all biases": {
        "biases": (
            *("attn_q", "attn_k", "attn_v", "attn_output"),
            *("ffn_gate", "ffn_up", "ffn_down"),
        )
    },
    "rope base": {"rope_freq_base": 1e6},
    "linear": {"rope_scaling": ("linear", 4.0)},
    "yarn": {"rope_scaling": ("yarn", 4.0, 128)},
    "rope factors": {"rope_factors": True},
    "linear with rope factors": {"rope_scaling": ("linear", 2.0), "rope_factors": True},
    "eps": {"rms_eps": 1e-2},
    "mixed types": {
        "n_embd": 256,
        "n_ff": 512,
        "types": {"token_embd": "Q6_K", "attn_v": "Q5_0", "ffn_down": "Q8_0", "*": "Q4_K"},
    },
}


@pytest.mark.parametrize("n", [1, 2, 33, 257])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, n: int, tmp_path: Path) -> None:
    options = {"types": "Q4_1", **VARIANTS[name]}
    path, tokens = tmp_path / "toy.gguf", random_tokens(n, options.get("n_vocab", 320))
    make_llama(path, **options)
    got = nbllama.logits(nbllama.load_model(path), tokens)
    compare(f"model, {name}", got, decoded_logits(path, tmp_path, tokens), BOUND)


def test_adapter_on_everything(tmp_path: Path) -> None:
    """An untied model with pairs on the embeddings, the seven linears and the output."""
    path, tokens = tmp_path / "toy.gguf", random_tokens(33)
    make_llama(path, types="Q4_1")
    model = nbllama.load_model(path)
    ranks = {"wq": 3, "w2": 6, "tok_embd": 2, "out": 5}
    adapter = nbllama.init_adapter(model, rank=4, alpha=8, ranks=ranks)
    rng = np.random.default_rng(8)
    for name, x in adapter.parameters().items():
        x[:] = 0.2 * rng.standard_normal(x.shape) / (1 if name.endswith("lora_b") else 4)
    nbllama.save_adapter(tmp_path / "adapter.gguf", adapter, model)
    got = nbllama.logits(model, tokens, adapter)
    decode_to_f32(path, tmp_path / "f32.gguf")
    with oracle.LlamaModel(tmp_path / "f32.gguf") as theirs:
        wanted = theirs.logits(tokens, lora=[(tmp_path / "adapter.gguf", 1.0)])
        without = theirs.logits(tokens)
    assert relative(wanted, without) > 0.1
    compare("model with an adapter on every matrix", got, wanted, BOUND)


def test_greedy_text(tmp_path: Path) -> None:
    """Our logits of a whole sequence choose what llama.cpp chooses token by token."""
    path, tokens = tmp_path / "toy.gguf", random_tokens(20)
    make_llama(path, types="Q8_0")
    decode_to_f32(path, tmp_path / "f32.gguf")
    with oracle.LlamaModel(tmp_path / "f32.gguf") as theirs:
        answer = theirs.greedy(tokens, 12)
    assert len(set(answer)) > 1
    got = nbllama.logits(nbllama.load_model(path), tokens + answer)
    assert got[len(tokens) - 1 : -1].argmax(axis=1).tolist() == answer


TEXT = "The rain in Spain stays mainly in the plain. Grüße aus 東京!\n\tdef f(x): return x**2\n" * 2


def test_demo_model(demo_model: Path) -> None:
    """Against llama.cpp's rounded activations: a quick look at the real model."""
    with oracle.LlamaModel(demo_model, n_threads=2) as theirs:
        tokens = theirs.vocab.tokenize(TEXT)
        wanted = theirs.logits(tokens)
    got = nbllama.logits(nbllama.load_model(demo_model), tokens)
    record("SmolLM2-135M Q4_1, llama.cpp's rounded activations", relative(got, wanted), 0.1)
    same = got.argmax(axis=1) == wanted.argmax(axis=1)
    assert same.mean() > 0.9


@pytest.mark.slow
def test_demo_model_in_f32(demo_model: Path, tmp_path: Path) -> None:
    """Writes 540 MB: the real model decoded, 30 layers of float32 on both sides."""
    with oracle.LlamaVocab(demo_model) as vocab:
        tokens = vocab.tokenize(TEXT * 3)
    got = nbllama.logits(nbllama.load_model(demo_model), tokens)
    wanted = decoded_logits(demo_model, tmp_path, tokens, n_threads=2)
    (tmp_path / "f32.gguf").unlink()
    compare("SmolLM2-135M Q4_1", got, wanted, BOUND)
    assert (got.argmax(axis=1) == wanted.argmax(axis=1)).all()
