"""Every row of the pre-tokenizer table cuts as llama.cpp does."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest

from nbllama.errors import GGUFError, UsageError
from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, tokenizer_from_gguf
from nbllama.text.bpe import BpeTokenizer
from nbllama.text.pretokenizers import PRE_TOKENIZERS, pre_tokenizer
from tests.oracle import LlamaVocab
from tests.text.conftest import load
from tests.text.strings import test_strings
from tests.text.vocabs import CONTROL, write_vocab

Parts = tuple[list[str], list[int], list[str]]
# llama.cpp runs these on std::regex, 20 to 40 times slower than we are.
SLOW_IN_LLAMA = {"tekken", "gpt-4o"}
DISTINCT = list({row.patterns: name for name, row in reversed(PRE_TOKENIZERS.items())}.values())


def write(tmp_path: Path, parts: Parts, pre: str) -> Path:
    tokens, types, merges = parts
    ids = {"bos_token_id": len(tokens) - 4, "eos_token_id": len(tokens) - 1}
    path = tmp_path / "bpe.gguf"
    return write_vocab(path, "gpt2", tokens, types=types, merges=merges, pre=pre, keys=ids)


@pytest.mark.parametrize("pre", DISTINCT)
def test_ids(pre: str, tmp_path: Path, bpe_parts: Parts) -> None:
    path = write(tmp_path, bpe_parts, pre)
    n, size = (80, 4) if pre in SLOW_IN_LLAMA else (400, 12)
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        assert (tokenizer.add_bos, tokenizer.eog_ids) == (llama.add_bos, llama.eog)
        for s in test_strings(n, CONTROL, seed=4, size=size):
            ids = tokenizer.encode(s, add_special=True, parse_special=True)
            assert ids == llama.tokenize(s, True, True), s
            for special in (False, True):
                pieces = b"".join(llama.token_to_piece(i, special) for i in ids)
                assert tokenizer.decode_bytes(ids, special=special) == pieces


@pytest.mark.parametrize("pre", DISTINCT)
def test_words_change_nothing(pre: str, tmp_path: Path, bpe_parts: Parts) -> None:
    """The library gets the words that it would cut itself: whole texts give the same ids."""
    tokenizer = load(write(tmp_path, bpe_parts, pre))
    assert isinstance(tokenizer, BpeTokenizer)
    rng = random.Random(9)
    parts = ["a", "B", "x's", " ", "  ", "\n", "\r\n", "\t", ".", "(", "3", "12345", "\u00e9"]
    parts += ["\u4e2d\u6587", "|", "$", "'", "\n\n", " a", " 7", " (", "\u3000", "\x1c", "\xa0"]
    texts = ["".join(rng.choices(parts, k=rng.randint(2, 14))) for _ in range(600)]
    texts += test_strings(100, [], seed=10, size=6)
    for text in texts:
        whole = tokenizer._library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == [i for i in whole if i < tokenizer.n_vocab], text


@pytest.mark.parametrize("pre", DISTINCT)
def test_chunks_change_nothing(
    pre: str, tmp_path: Path, bpe_parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at every place that is considered safe."""
    tokenizer = load(write(tmp_path, bpe_parts, pre))
    ends = [". ", "", " ", "1", "'s", "!!", "/", "\r", "\n", "\u3000", "A", "\u4f60", "~"]
    lines = [a + b + "\n" for a in test_strings(150, [], seed=8, size=4) for b in ends]
    text = "".join(c + s for c, s in zip("axBs" * 999, lines, strict=False))
    whole = tokenizer.encode(text)
    monkeypatch.setattr(Tokenizer, "CHUNK", 1)
    parts = list(tokenizer.encode_parts(text))
    assert len(parts) > 500
    assert [i for p in parts for i in p] == whole


def test_rows_cut_differently(tmp_path: Path, bpe_parts: Parts) -> None:
    """The vocabulary distinguishes the rows: the same text has other ids with each of them."""
    text = "".join(test_strings(300, [], seed=4))
    seen: dict[tuple[int, ...], str] = {}
    for pre in DISTINCT:
        ids = tuple(load(write(tmp_path, bpe_parts, pre)).encode(text))
        assert ids not in seen, (pre, seen.get(ids))
        seen[ids] = pre


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_names_and_defaults(pre: str, tmp_path: Path) -> None:
    """llama.cpp has every name, with the same defaults."""
    tokens = [*"abcdefghijklmn", "ab", "abc", "nml", "Ċ"]
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", tokens, merges=["b c", "a b", "ab c"][1:], pre=pre)
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        assert (tokenizer.bos_id, tokenizer.eos_id) == (llama.bos, llama.eos)
        assert (tokenizer.add_bos, tokenizer.add_eos) == (llama.add_bos, llama.add_eos)
        for s in ("abc", "cab", "nml"):  # no merge leads to "nml"
            assert tokenizer.encode(s, add_special=True) == llama.tokenize(s, True, False)


def test_ignore_merges(tmp_path: Path) -> None:
    """A piece that is a token is taken whole under llama-bpe, and merged under qwen2."""
    tokens = [*"abcĊ", "abc", *"<>", "ab", "ca", "x", "y", "z", "w"]
    for pre, expected in (("llama-bpe", [4]), ("qwen2", [7, 2])):
        path = tmp_path / f"{pre}.gguf"
        write_vocab(path, "gpt2", tokens, merges=["a b"], pre=pre)
        assert load(path).encode("abc") == expected
        with LlamaVocab(path) as llama:
            assert llama.tokenize("abc") == expected


def test_unknown_name_is_refused_with_it() -> None:
    with pytest.raises(GGUFError, match="pre-tokenizer 'kimi-k2' is not supported") as e:
        pre_tokenizer("kimi-k2")
    assert "\n" not in str(e.value)


def test_another_name_takes_its_place(tmp_path: Path, bpe_parts: Parts) -> None:
    """A file with an unknown pre-tokenizer uses `pre`, like a file that names it."""
    text = "".join(test_strings(50, [], seed=4))
    named = load(write(tmp_path, bpe_parts, "qwen2")).encode(text)
    with open_gguf(write(tmp_path, bpe_parts, "kimi-k2")) as f:
        with pytest.raises(GGUFError, match=r"kimi-k2.*--pre"):
            tokenizer_from_gguf(f)
        assert tokenizer_from_gguf(f, "qwen2").encode(text) == named
        assert tokenizer_from_gguf(f, "gpt-2").encode(text) != named
        with pytest.raises(GGUFError, match="'nothing' is not supported"):
            tokenizer_from_gguf(f, "nothing")


def test_sentencepiece_has_none(tmp_path: Path) -> None:
    path = write_vocab(tmp_path / "v.gguf", "llama", ["<unk>", "a"], scores=[0.0, 0.0])
    with open_gguf(path) as f, pytest.raises(UsageError, match="--pre qwen2: a SentencePiece"):
        tokenizer_from_gguf(f, "qwen2")


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe", "deepseek-v3"])
def test_every_character(pre: str, tmp_path: Path) -> None:
    """Each Unicode character between letters, digits, marks and spaces; all byte pairs merge."""
    from nbllama.text.bpe import BYTE_CHARACTERS

    letters = list(BYTE_CHARACTERS.values())
    pairs = [(a, b) for a in letters for b in letters]
    random.Random(1).shuffle(pairs)
    tokens = [*letters, *(a + b for a, b in pairs)]
    path = tmp_path / "pairs.gguf"
    write_vocab(path, "gpt2", tokens, merges=[f"{a} {b}" for a, b in pairs], pre=pre)
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        for code in range(0x110000):
            c = chr(code)
            # Of the large scripts and the empty planes a sample.
            large = code > 0x33000 or (code > 0x3400 and unicodedata.category(c) in ("Lo", "Co"))
            if 0xD800 <= code < 0xE000 or (large and code % 11):
                continue
            s = f"a{c}a 1{c}1 !{c}! {c}a"
            assert tokenizer.encode(s) == llama.tokenize(s), hex(code)
