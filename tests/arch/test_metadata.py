"""Metadata of real files: read as llama.cpp reads it, checked by comparing logits.

Single keys, and the refusal of each contradiction: tests/arch.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama import finetune
from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from nbllama.text.from_gguf import tokenizer_from_gguf
from tests import oracle
from tests.differences import compare
from tests.gguf_edit import edit
from tests.gguf_io import build as b

TOKENS = np.random.default_rng(2).integers(0, 320, 40).tolist()
TEXT = "the hen and the heron, 天对地, are 3 on  the other end of it\n"
COUNTS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "rope.dimension_count",
    "vocab_size",
)
VALUES = dict(zip(COUNTS, (2, 512, 64, 96, 4, 2, 16, 320), strict=True))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    make_llama(tmp_path / "toy.gguf")
    return tmp_path / "toy.gguf"


def ours(path: Path) -> np.ndarray:
    return nbllama.logits(nbllama.load_model(path), TOKENS)


def as_llama_cpp(name: str, path: Path) -> np.ndarray:
    """Our logits of a file, compared with llama.cpp's of the same file."""
    got = ours(path)
    with oracle.LlamaModel(path) as theirs:
        compare(f"metadata, {name}", got, theirs.logits(TOKENS), 2e-5)
    return got


def same_ids(path: Path, text: str) -> list[int]:
    """Ids of a text, which are llama.cpp's too."""
    with open_gguf(path) as f:
        ids = tokenizer_from_gguf(f).encode(text, add_special=True)
    with oracle.LlamaModel(path) as theirs:
        assert theirs.vocab.tokenize(text, add_special=True) == ids
    return ids


@pytest.mark.parametrize("tokenizer", ["spm", "bpe"])
def test_a_file_of_2023(tokenizer: str, tmp_path: Path) -> None:
    """Version 2; no template, no `tokenizer.ggml.pre`, no word on bos; RoPE by `scale_linear`."""
    new, path = tmp_path / "new.gguf", tmp_path / "old.gguf"
    make_llama(new, tokenizer=tokenizer, rope_scaling=("linear", 4.0))
    left_out = ["llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.vocab_size"]
    left_out += ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"]
    left_out += ["tokenizer.ggml.pre"] * (tokenizer == "bpe")
    old_key = {"llama.rope.scale_linear": b.kv_f32("llama.rope.scale_linear", 4.0)}
    edit(new, path, drop=left_out, put=old_key, version=2)
    np.testing.assert_array_equal(as_llama_cpp("2023", path), ours(new))
    edit(new, tmp_path / "unscaled.gguf", drop=left_out, version=2)
    assert np.abs(ours(tmp_path / "unscaled.gguf") - ours(new)).max() > 1e-3
    ids = same_ids(path, TEXT)
    assert (ids[0] == 1) == (tokenizer == "spm")  # bos, by the kind of the vocabulary alone
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    words = ["--model-base", str(path), "--train-data", str(tmp_path / "text.txt"), "--ctx", "16"]
    words += ["-b", "2", "--adam-iter", "1", "--lora-out", str(tmp_path / "lora.gguf")]
    words += ["--checkpoint-out", str(tmp_path / "checkpoint.gguf"), "--seed", "3"]
    assert finetune.main(words) == 0
    trained = nbllama.load_adapter(tmp_path / "lora.gguf", nbllama.load_model(path))
    assert any(pair.b.any() for pair in trained.pairs.values())


@pytest.mark.parametrize(
    ("kind", "code"), [(b.U32, "I"), (b.I32, "i"), (b.U64, "Q"), (b.I64, "q"), (b.U16, "H")]
)
def test_counts_of_any_width(kind: int, code: str, toy: Path, tmp_path: Path) -> None:
    """llama.cpp insists on 32 bits without a sign; other programs write what they like."""
    put = {}
    for key, value in VALUES.items():
        put[f"llama.{key}"] = b.kv(f"llama.{key}", kind, struct.pack("<" + code, value))
    for role, value in (("bos", 1), ("eos", 2)):
        key = f"tokenizer.ggml.{role}_token_id"
        put[key] = b.kv(key, kind, struct.pack("<" + code, value))
    path = edit(toy, tmp_path / "counts.gguf", put=put)
    np.testing.assert_array_equal(ours(path), ours(toy))
    with open_gguf(path) as f:
        assert tokenizer_from_gguf(f).eos_id == 2
    if kind == b.U32:
        as_llama_cpp("counts", path)
    else:
        with pytest.raises(RuntimeError, match="cannot load"):
            oracle.LlamaModel(path)


def per_layer(key: str, values: list[int], kind: int = b.I32) -> dict[str, bytes]:
    name = f"llama.{key}"
    code = {b.I32: "i", b.U32: "I"}[kind]
    payload = struct.pack(f"<{len(values)}{code}", *values)
    return {name: b.kv_array(name, kind, len(values), payload)}


@pytest.mark.parametrize("kind", [b.I32, b.U32])
def test_a_count_for_every_layer(kind: int, toy: Path, tmp_path: Path) -> None:
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    put: dict[str, bytes] = {}
    for key in keys:
        put |= per_layer(key, [VALUES[key]] * 2, kind)
        one = edit(toy, tmp_path / "one.gguf", put=per_layer(key, [VALUES[key]] * 2, kind))
        np.testing.assert_array_equal(ours(one), ours(toy))
    got = as_llama_cpp("per layer", edit(toy, tmp_path / "all.gguf", put=put))
    np.testing.assert_array_equal(got, ours(toy))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([2, 4], "differs between layers"),
        ([2, 2, 2], "3 values for 2"),
        ([0, 0], "0, but must be from 1 to "),
    ],
)
def test_counts_that_layers_do_not_share(
    values: list[int], said: str, toy: Path, tmp_path: Path
) -> None:
    path = edit(toy, tmp_path / "bad.gguf", put=per_layer("attention.head_count_kv", values))
    with pytest.raises(GGUFError, match=r"key 'llama\.attention\.head_count_kv': ") as caught:
        nbllama.load_model(path)
    assert said in str(caught.value)


def test_without_every_key_that_has_a_default(tmp_path: Path) -> None:
    full, bare = tmp_path / "full.gguf", tmp_path / "bare.gguf"
    make_llama(full, n_head_kv=4, rope_freq_base=10000.0)
    left_out = ("attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "vocab_size")
    drop = [f"llama.{key}" for key in left_out]
    drop += [f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "unknown")]
    drop += ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "general.name"]
    edit(full, bare, drop=drop)
    np.testing.assert_array_equal(as_llama_cpp("defaults", bare), ours(full))
    assert same_ids(bare, TEXT) == same_ids(full, TEXT)


@pytest.mark.parametrize("tokenizer", ["spm", "bpe"])
def test_padding_rows(tokenizer: str, tmp_path: Path) -> None:
    """Converters pad vocabularies with `[PADn]` tokens that no text produces."""
    plain, path = tmp_path / "plain.gguf", tmp_path / "padded.gguf"
    make_llama(plain, n_vocab=352, tokenizer=tokenizer)
    with open_gguf(plain) as f:
        texts = list(f.get("tokenizer.ggml.tokens", "strings"))
    padding = [i for i, text in enumerate(texts) if text.startswith("<filler")]
    assert len(padding) > 30 and padding[-1] == 351
    for i in padding:
        texts[i] = f"[PAD{i}]"
    key = "tokenizer.ggml.tokens"
    edit(plain, path, put={key: b.kv_strings(key, texts)})
    np.testing.assert_array_equal(as_llama_cpp("padding", path), ours(plain))
    ids = same_ids(path, f"{TEXT} [PAD351][PAD{padding[0]}]")
    assert not set(ids) & set(padding)
