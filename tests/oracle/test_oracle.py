"""The oracle itself: quantisers, tokenizer, models, and the toy models made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from examples.toy_models import decode_to_f32, make_llama
from tests import oracle

# Root mean square error of normal weights after quantisation, in units of their deviation.
# Expected for the formats: a little over 2^-bits for the uniform ones; 1 to 2 bits keep signs.
LARGEST_ERROR = {
    "F32": 0.0,
    "F16": 3e-4,
    "BF16": 3e-3,
    "Q8_0": 0.01,
    "Q6_K": 0.03,
    "Q5_0": 0.06,
    "Q5_1": 0.06,
    "Q5_K": 0.06,
    "Q4_0": 0.12,
    "Q4_1": 0.12,
    "Q4_K": 0.12,
    "IQ4_NL": 0.12,
    "IQ4_XS": 0.12,
    "MXFP4": 0.16,
    "NVFP4": 0.16,
    "Q1_0": 0.7,
    "Q3_K": 0.25,
    "IQ3_S": 0.25,
    "IQ3_XXS": 0.3,
    "Q2_K": 0.4,
    "IQ2_S": 0.4,
    "IQ2_XS": 0.4,
    "IQ2_XXS": 0.45,
    "IQ1_S": 0.7,
    "IQ1_M": 0.7,
    "TQ1_0": 0.9,
    "TQ2_0": 0.9,
}


@pytest.fixture(scope="module")
def normal_rows() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((8, 512)).astype(np.float32)


@pytest.mark.parametrize("name", oracle.QUANT_TYPES)
def test_quantise_and_decode(name: str, normal_rows: np.ndarray) -> None:
    type_id = oracle.QUANT_TYPES[name]
    raw = oracle.quantize(type_id, normal_rows)
    assert len(raw) == len(normal_rows) * oracle.row_bytes(type_id, 512)
    back = oracle.dequantize(type_id, raw, normal_rows.size).reshape(normal_rows.shape)
    error = np.sqrt(np.mean((back - normal_rows) ** 2))
    assert error <= LARGEST_ERROR[name]
    if name == "Q1_0":  # gguf has no code for it; tests/quants compares it with numpy's
        return
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(len(normal_rows), -1)
    if name in ("F32", "F16"):
        rows = rows.view({"F32": np.float32, "F16": np.float16}[name])
    wanted = quants.dequantize(rows, GGMLQuantizationType(type_id))
    # The C code and gguf's numpy code do the same float32 operations in the same order.
    np.testing.assert_array_equal(back, wanted)


def test_importance_matrix_moves_the_error(normal_rows: np.ndarray) -> None:
    weight = np.ones(512, dtype=np.float32)
    weight[:256] = 100
    raw = oracle.quantize(oracle.QUANT_TYPES["Q4_K"], normal_rows, weight)
    plain = oracle.quantize(oracle.QUANT_TYPES["Q4_K"], normal_rows)
    assert raw != plain
    with pytest.raises(ValueError, match="imatrix"):
        oracle.quantize(oracle.QUANT_TYPES["Q4_K"], normal_rows, weight[:-1])


def test_quantise_refuses_what_would_abort() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        oracle.quantize(oracle.QUANT_TYPES["Q4_K"], np.zeros((2, 128), dtype=np.float32))
    with pytest.raises(ValueError, match="not one of"):
        oracle.quantize(4, np.zeros((2, 256), dtype=np.float32))
    with pytest.raises(ValueError, match="bytes, expected"):
        oracle.dequantize(oracle.QUANT_TYPES["Q4_0"], b"\0" * 17, 32)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer": {"n_layer": 1},
    "tied": {"tied": True},
    "mha": {"n_head_kv": 4},
    "wide heads": {"head_dim": 32},
    "attention biases": {"biases": True},
    "ffn biases": {"biases": ("ffn_gate", "ffn_up", "ffn_down")},
    "rope base": {"rope_freq_base": 500000.0},
    "linear": {"rope_scaling": ("linear", 4.0)},
    "yarn": {"rope_scaling": ("yarn", 4.0, 128)},
    "rope factors": {"rope_factors": True},
    "bpe": {"tokenizer": "bpe"},
    "no tokenizer": {"tokenizer": "none"},
    "few tokens": {"n_vocab": 64},
    "qwen2": {"arch": "qwen2", "biases": ("attn_q", "attn_k", "attn_v")},
    "mixed types": {"n_embd": 256, "types": {"attn_q": "Q4_K", "ffn_down": "Q8_0", "*": "F16"}},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_toy_models_load(options: dict[str, Any], tmp_path: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, options.get("n_vocab", 320), 33).tolist()
    make_llama(tmp_path / "toy.gguf", **options)
    with oracle.LlamaModel(tmp_path / "toy.gguf") as model:
        logits = model.logits(tokens)
        np.testing.assert_array_equal(model.logits(tokens), logits)
        # A position sees only earlier positions; another batch size sums in another order.
        np.testing.assert_allclose(model.logits(tokens[:5]), logits[:5], atol=1e-5)
        with pytest.raises(ValueError, match="token"):
            model.logits([model.vocab.n_tokens])
    assert logits.shape == (33, options.get("n_vocab", 320))
    assert logits.dtype == np.float32
    assert 0.5 < logits.std() < 4


@pytest.mark.parametrize("name", ["rope base", "linear", "yarn", "rope factors"])
def test_rope_options_reach_the_model(name: str, tmp_path: Path) -> None:
    tokens = list(range(100, 130))
    make_llama(tmp_path / "plain.gguf")
    make_llama(tmp_path / "toy.gguf", **VARIANTS[name])
    with (
        oracle.LlamaModel(tmp_path / "plain.gguf") as a,
        oracle.LlamaModel(tmp_path / "toy.gguf") as b,
    ):
        difference = np.abs(a.logits(tokens) - b.logits(tokens)).max(axis=1)
    # The weights are the same: only the angles differ, and position 0 has none.
    assert difference[-1] > 1e-2
    if name != "yarn":  # yarn also scales the queries and keys
        assert difference[0] == 0


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_llama(tmp_path / name, types="Q4_0")
    make_llama(tmp_path / "c", types="Q4_0", seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("types", ["F32", "F16", "Q4_0", "Q8_0"])
def test_decoded_file_is_the_same_model(types: str, tmp_path: Path) -> None:
    tokens = list(range(40, 60))
    make_llama(tmp_path / "toy.gguf", types=types)
    decode_to_f32(tmp_path / "toy.gguf", tmp_path / "f32.gguf")
    with (
        oracle.LlamaModel(tmp_path / "toy.gguf") as a,
        oracle.LlamaModel(tmp_path / "f32.gguf") as b,
    ):
        direct, decoded = a.logits(tokens), b.logits(tokens)
        assert a.vocab.tokenize("the hen") == b.vocab.tokenize("the hen")
    # llama.cpp rounds activations to 8 bits (quantised weights) or 11 bits (F16).
    bound = {"F32": 0.0, "F16": 2e-3}.get(types, 0.03)
    assert np.abs(direct - decoded).max() <= bound * np.abs(decoded).max()


def test_missing_files_are_told() -> None:
    for make in (oracle.LlamaVocab, oracle.LlamaModel):
        with pytest.raises(RuntimeError, match="cannot load"):
            make("no-such-file.gguf")
    with pytest.raises(RuntimeError, match="cannot read"):
        decode_to_f32("no-such-file.gguf", "never-written.gguf")


@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_toy_tokenizers(kind: str, tmp_path: Path) -> None:
    make_llama(tmp_path / "toy.gguf", tokenizer=kind)
    with oracle.LlamaVocab(tmp_path / "toy.gguf") as vocab:
        assert vocab.n_tokens == 320
        text = "thed the é\n"
        assert vocab.detokenize(vocab.tokenize(text)) == text.encode()
        ids = vocab.tokenize(text, add_special=True)
        pieces = [vocab.token_to_piece(i) for i in ids]
        if kind == "spm":
            assert ids[0] == vocab.bos == 1
            assert pieces == [b"", b" the", b"d", b" the", b" ", b"\xc3", b"\xa9", b"\n"]
        else:
            assert pieces == [b"the", b"d", b" the", b" ", b"\xc3", b"\xa9", b"\n"]


def test_demo_tokenizer(demo_model: Path) -> None:
    with oracle.LlamaVocab(demo_model) as vocab:
        assert (vocab.n_tokens, vocab.bos, vocab.eos, vocab.add_bos) == (49152, 1, 2, False)
        assert vocab.eog == {0, 2, 4}
        assert vocab.tokenize("<|im_start|>", parse_special=True) == [1]
        assert len(vocab.tokenize("<|im_start|>")) > 1
        assert (vocab.token_to_piece(1), vocab.token_to_piece(1, True)) == (b"", b"<|im_start|>")
        text = "Grüße, 世界! \t 1234"
        assert vocab.detokenize(vocab.tokenize(text)) == text.encode()


def test_demo_model_speaks(demo_model: Path) -> None:
    with oracle.LlamaModel(demo_model) as model:
        question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        tokens = model.vocab.tokenize(question + "<|im_start|>assistant\n", parse_special=True)
        answer = model.greedy(tokens, 20)
        assert b"Paris" in model.vocab.detokenize(answer)
        # The same through one batch: greedy's own choices are the largest logits.
        best = model.logits(tokens + answer[:-1])[len(tokens) - 1 :].argmax(axis=1)
        assert best.tolist() == answer
