"""Keys of the vocabulary: refusals in one line each, and llama.cpp's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import GGUFError
from nbllama.text.special_tokens import EOG_TEXTS, RENDERED, ROLES
from tests.oracle import LlamaVocab
from tests.text.conftest import load
from tests.text.vocabs import write_vocab

SPM: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "a", "b"],
    "scores": [0.0, 0.0, 0.0, -1.0, -2.0],
    "types": [2, 3, 3, 1, 1],
}
BPE: dict[str, Any] = {
    "model": "gpt2",
    "tokens": ["a", "b", "c", "ab", "<e>"],
    "types": [1, 1, 1, 1, 3],
    "merges": ["a b"],
    "pre": "gpt-2",
}

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # M15: types and lengths
    ("scores short", SPM, {"scores": [0.0] * 4}, "scores: 4 elements for 5 tokens"),
    ("scores long", SPM, {"scores": [0.0] * 6}, "scores: 6 elements for 5 tokens"),
    (
        "scores ints",
        SPM,
        {"scores": None, "keys": {"scores": [1, 2, 3, 4, 5]}},
        "scores'.*ARRAY|scores",
    ),
    ("scores strings", SPM, {"scores": None, "keys": {"scores": ["x"] * 5}}, "scores"),
    ("scores missing", SPM, {"scores": None}, "scores"),
    ("score NaN", SPM, {"scores": [0.0, 0.0, 0.0, float("nan"), 0.0]}, r"scores\[3\]: nan"),
    ("score inf", SPM, {"scores": [0.0, 0.0, 0.0, 0.0, float("inf")]}, r"scores\[4\]: inf"),
    ("types short", SPM, {"types": [1] * 4}, "token_type: 4 elements for 5 tokens"),
    ("types floats", SPM, {"types": None, "keys": {"token_type": [1.0] * 5}}, "token_type"),
    ("type unknown", SPM, {"types": [1, 1, 9, 1, 1]}, r"token_type\[2\]: 9 is not a supported"),
    ("type negative", BPE, {"types": [1, -1, 1, 1, 1]}, r"token_type\[1\]: -1"),
    ("byte of no byte", SPM, {"types": [2, 3, 3, 6, 1]}, r"tokens\[3\]: 'a' has type byte"),
    ("tokens ints", SPM, {"tokens": [1, 2, 3, 4, 5]}, "tokens"),
    (
        "tokens twice",
        SPM,
        {"tokens": ["<unk>", "a", "</s>", "a", "b"]},
        "'a' is both token 1 and token 3",
    ),
    (
        "special not UTF-8",
        SPM,
        {"tokens": [b"u", b"s", b"\xff", b"a", b"b"]},
        "token 2 is not UTF-8",
    ),
    ("model a number", SPM, {"model": None, "keys": {"model": 7}}, "model"),
    # M16: ids
    *(
        (
            f"{role} id",
            vocab,
            {"keys": {f"{role}_token_id": 5}},
            f"{role}_token_id: 5, but .* 5 tokens",
        )
        for role in ("bos", "eos", "unknown", "padding", "eot", "eom", "fim_pad", "prefix")
        for vocab in (SPM, BPE)
    ),
    ("bos a string", SPM, {"keys": {"bos_token_id": "1"}}, "bos_token_id"),
    ("add_bos a number", SPM, {"keys": {"add_bos_token": 1}}, "add_bos_token"),
    (
        "no bos to add",
        BPE,
        {"keys": {"add_bos_token": True}},
        "add_bos_token is true, but .*bos_token_id",
    ),
    (
        "no eos to add",
        BPE,
        {"keys": {"add_eos_token": True}},
        "add_eos_token is true, but .*eos_token_id",
    ),
    # M17: merges
    ("merge without space", BPE, {"merges": ["ab"]}, r"merges\[0\]: 'ab' is not two tokens"),
    (
        "merge with two",
        BPE,
        {"merges": ["a b", "a b c"]},
        r"merges\[1\]: 'a b c' is not two tokens",
    ),
    ("merge of nothing", BPE, {"merges": [" b"]}, "is not two tokens"),
    ("merge to nothing", BPE, {"merges": ["a "]}, "is not two tokens"),
    ("merge of unknown", BPE, {"merges": ["a x"]}, r"merges\[0\]: 'a x': 'x' is not a token"),
    ("merge into unknown", BPE, {"merges": ["b a"]}, r"merges\[0\]: 'b a': 'ba' is not a token"),
    ("merges missing", BPE, {"merges": None}, "merges"),
    ("merges ints", BPE, {"merges": None, "keys": {"merges": [1, 2]}}, "merges"),
    # M18: tokenizers
    ("model unknown", SPM, {"model": "bert\n"}, r"tokenizer 'bert\\n' is not supported"),
    ("model rwkv", SPM, {"model": "rwkv"}, "tokenizer 'rwkv' is not supported"),
    ("model missing", SPM, {"model": None}, "tokenizer.ggml.model"),
    ("pre unknown", BPE, {"pre": "x\x1b[31m"}, r"pre-tokenizer 'x\\x1b\[31m' is not supported"),
    ("pre a number", BPE, {"pre": None, "keys": {"pre": 3}}, "tokenizer.ggml.pre"),
    ("template a number", SPM, {"keys": {"tokenizer.chat_template": 3}}, "chat_template"),
]


def write(path: Path, base: dict[str, Any], **changes: Any) -> Path:
    fields = {**base, **changes}
    return write_vocab(path, fields.pop("model"), fields.pop("tokens"), **fields)


@pytest.mark.parametrize(
    ("base", "changes", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.gguf", base, **changes)
    with pytest.raises(GGUFError, match=message) as e:
        load(path)
    line = str(e.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable() and len(line) < 1500
    assert e.value.exit_code == 2


@pytest.mark.parametrize("base", [SPM, BPE], ids=["spm", "bpe"])
def test_the_bases_are_accepted(tmp_path: Path, base: dict[str, Any]) -> None:
    path = write(tmp_path / "good.gguf", base, keys={"add_space_prefix": False})
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        assert tokenizer.encode("ab") == llama.tokenize("ab")


def roles_vocab(texts: list[str], **keys: Any) -> dict[str, Any]:
    tokens = [*"abcdefghijkl", "ab", *texts]
    types = [1] * len(tokens)
    return {**BPE, "tokens": tokens, "types": types, "keys": keys}


def same_as_llama(path: Path, texts: list[str]) -> None:
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        assert tokenizer.eog_ids == llama.eog
        assert tokenizer.eot_id == llama.eot
        assert (tokenizer.bos_id, tokenizer.eos_id) == (llama.bos, llama.eos)
        for s in ("a".join(texts), "ab"):
            for parse in (False, True):
                assert tokenizer.encode(s, parse_special=parse) == llama.tokenize(s, False, parse)
        for i in range(tokenizer.n_vocab):
            for special in (False, True):
                piece = tokenizer.token_bytes(i, special=special)
                assert piece == llama.token_to_piece(i, special)


KNOWN = sorted({*EOG_TEXTS, *RENDERED, *(t for _, texts in ROLES.values() for t in texts)})


@pytest.mark.parametrize("text", KNOWN)
def test_known_texts(tmp_path: Path, text: str) -> None:
    """Each text with a role, alone: made special, and an end token if llama.cpp treats it so."""
    same_as_llama(write(tmp_path / "v.gguf", roles_vocab([text])), [text])


@pytest.mark.parametrize(
    "texts",
    [
        ["<|end|>", "<|return|>", "<|call|>"],
        ["<|end|>", "<|return|>"],
        ["<|end|>", "<|flush|>", "<|calls|>"],
        ["<|end|>", "<|call|>"],
        ["<|tool_response>", "</s>", "<turn|>"],
        ["<|channel|>", "<|message|>", "<|start|>", "<|return|>"],
        ["<|eom_id|>", "<|eot_id|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<s>"],
    ],
)
def test_texts_together(tmp_path: Path, texts: list[str]) -> None:
    same_as_llama(write(tmp_path / "v.gguf", roles_vocab(texts)), texts)


@pytest.mark.parametrize(
    "role", ["eot", "eom", "fim_pre", "fim_pad", "fim_rep", "prefix", "bos", "eos"]
)
def test_roles_by_key(tmp_path: Path, role: str) -> None:
    texts = ["<|eot_id|>", "<|x|>"]
    same_as_llama(write(tmp_path / "v.gguf", roles_vocab(texts, **{f"{role}_token_id": 14})), texts)


def test_ambiguous_role_takes_the_first_of_the_list(tmp_path: Path) -> None:
    """llama.cpp takes whichever its hash table has first; the ends are the same."""
    path = write(tmp_path / "v.gguf", roles_vocab(["<|endoftext|>", "<|im_end|>"]))
    tokenizer = load(path)
    assert tokenizer.eot_id == 14
    with LlamaVocab(path) as llama:
        assert tokenizer.eog_ids == llama.eog == {11, 13, 14}


def test_big_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    import time

    n = 60_000
    tokens = [f"t{i}" for i in range(n)]
    path = write(tmp_path / "v.gguf", SPM, tokens=tokens, scores=[0.5] * n, types=[1] * n)
    start = time.process_time()
    load(path)
    assert time.process_time() - start < 2.0  # measured 0.1 s; a list search would take minutes
