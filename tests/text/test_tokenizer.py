"""Ids and texts of whole vocabularies equal llama.cpp's, string by string."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from nbllama.errors import DataError
from nbllama.text import StreamDecoder, Tokenizer
from tests.oracle import LlamaVocab
from tests.text.conftest import Pair
from tests.text.strings import test_strings

N = 2000
FLAGS = [(False, False), (True, True), (False, True)]  # add_special, parse_special


def check_ids(tokenizer: Tokenizer, llama: LlamaVocab, strings: list[str]) -> None:
    for s in strings:
        for add, parse in FLAGS:
            ids = tokenizer.encode(s, add_special=add, parse_special=parse)
            assert ids == llama.tokenize(s, add, parse), (s, add, parse)


def check_places(tokenizer: Tokenizer, strings: list[str]) -> None:
    """The text of a token of whole characters is at the position in `starts`."""
    checked = 0
    for s in strings:
        text = s.replace("\u2581", " ")
        for add, parse in FLAGS:
            ids, starts = tokenizer.encode_with_starts(s, add_special=add, parse_special=parse)
            assert ids == tokenizer.encode(s, add_special=add, parse_special=parse)
            assert starts == sorted(starts)
            assert all(0 <= i <= len(s) for i in starts)
            if add and tokenizer.add_bos:
                assert starts[0] == 0
                ids, starts = ids[1:], starts[1:]
            if add and tokenizer.add_eos:
                assert starts[-1] == len(s)
                ids, starts = ids[:-1], starts[:-1]
            for i, at in zip(ids, starts, strict=True):
                piece = tokenizer.token_bytes(i).decode("utf-8", "replace")
                if "\ufffd" not in piece and not text.startswith(piece, at):
                    assert tokenizer.add_space_prefix, (s, i, at)
                    assert piece[0] == " " and text.startswith(piece[1:], at), (s, i, at)
                    assert at == 0 or parse or s[:at].endswith(("<tool>", "  ", "\n\n"))
                checked += 1
    assert checked > 1000


def check_texts(tokenizer: Tokenizer, llama: LlamaVocab, strings: list[str]) -> None:
    rng = random.Random(5)
    lists = [tokenizer.encode(s, add_special=True, parse_special=True) for s in strings]
    lists += [rng.choices(range(tokenizer.n_vocab), k=rng.randint(0, 9)) for _ in range(500)]
    for ids in lists:
        for special in (False, True):
            data = tokenizer.decode_bytes(ids, special=special)
            assert data == llama.detokenize(ids, unparse_special=special), (ids, special)
            assert tokenizer.decode(ids, special=special) == data.decode("utf-8", "replace")
            stream = StreamDecoder(tokenizer, special=special, at_start=True)
            parts = [stream.push(i) for i in ids] + [stream.flush()]
            assert "".join(parts) == data.decode("utf-8", "replace")


def check_pieces(tokenizer: Tokenizer, llama: LlamaVocab) -> None:
    for i in range(tokenizer.n_vocab):
        for special in (False, True):
            assert tokenizer.token_bytes(i, special=special) == llama.token_to_piece(i, special), i


def check_attributes(tokenizer: Tokenizer, llama: LlamaVocab) -> None:
    assert tokenizer.n_vocab == llama.n_tokens
    assert (tokenizer.bos_id, tokenizer.eos_id) == (llama.bos, llama.eos)
    assert tokenizer.pad_id == llama.pad
    assert (tokenizer.add_bos, tokenizer.add_eos) == (llama.add_bos, llama.add_eos)
    assert tokenizer.eog_ids == llama.eog
    assert tokenizer.eot_id in llama.eog


def test_demo_model(demo: Pair) -> None:
    tokenizer, llama = demo
    strings = test_strings(
        N, ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"], seed=1
    )
    assert len(set(strings)) > 1900
    check_attributes(tokenizer, llama)
    check_ids(tokenizer, llama, strings)
    check_places(tokenizer, strings[:400])
    check_texts(tokenizer, llama, strings[:400])


@pytest.mark.slow
def test_demo_model_pieces(demo: Pair) -> None:
    check_pieces(*demo)


def test_spm(spm: Pair) -> None:
    tokenizer, llama = spm
    specials = ["<|im_start|>", "<|im_end|>", "<tool>", "<s>", "</s>", "<unk>", "  ", "<0x0A>"]
    strings = test_strings(N, specials, seed=2)
    assert len(set(strings)) > 1900
    check_attributes(tokenizer, llama)
    assert tokenizer.eot_id == llama.eot  # one name of the role only, so no choice
    check_ids(tokenizer, llama, strings)
    check_places(tokenizer, strings[:400])
    check_texts(tokenizer, llama, strings[:400])
    check_pieces(tokenizer, llama)


def test_long_texts(demo: Pair, spm: Pair) -> None:
    """One text of 60,000 characters, one word of 5,000, one run of 3,000 spaces."""
    text = "".join(test_strings(1500, ["<|im_end|>"], seed=11))
    for tokenizer, llama in (demo, spm):
        for s in (text, "ab" * 2500, "a" + " " * 3000 + "b", "你" * 3000):
            assert tokenizer.encode(s) == llama.tokenize(s)


@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_chunks_change_nothing(
    demo: Pair, spm: Pair, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "CHUNK", chunk)
    for seed in range(20):
        text = "".join(test_strings(60, ["\nx", "a\nb", "\n"], seed=seed, size=6))
        for tokenizer, llama in (demo, spm):
            parts = list(tokenizer.encode_parts(text))
            assert [i for p in parts for i in p] == llama.tokenize(text)
            assert len(parts) > min(20, len(text) / chunk / 100)


def test_stream_yields_whole_characters_only(demo: Pair, spm: Pair) -> None:
    s = "a 😀👨‍👩‍👧 天地玄黄 \U0001f9ff é"
    for tokenizer, _ in (demo, spm):
        ids = tokenizer.encode(s)
        stream = StreamDecoder(tokenizer, at_start=True)
        parts = [stream.push(i) for i in ids]
        assert all("\ufffd" not in p for p in parts)
        assert any(p == "" for p in parts), "no character was split: the test tests nothing"
        assert "".join(parts) == s
        assert stream.flush() == ""


def test_stream_tells_of_an_unfinished_character(demo: Pair) -> None:
    tokenizer, _ = demo
    ids = tokenizer.encode("天" * 3 + "\U0001f9ff")
    stream = StreamDecoder(tokenizer)
    text = "".join(stream.push(i) for i in ids[:-1])
    assert text == "天天天"
    assert stream.flush() == "\ufffd"


def test_stream_in_the_middle_keeps_the_space(spm: Pair) -> None:
    tokenizer, _ = spm
    token = tokenizer.token_id("\u2581the")
    assert token is not None
    assert StreamDecoder(tokenizer).push(token) == " the"
    assert tokenizer.decode([token]) == ("the" if tokenizer.add_space_prefix else " the")


def test_libraries_are_imported_when_they_are_used(demo_model: Path) -> None:
    code = (
        "import sys\nfrom nbllama.gguf_io import open_gguf\nimport nbllama.text as t\n"
        f"t.tokenizer_from_gguf(open_gguf({str(demo_model)!r})).decode([5])\n"
        "heavy = {'tokenizers', 'sentencepiece', 'jinja2', 'numba', 'gguf'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lone_surrogate_is_refused(demo: Pair) -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at character 2"):
        demo[0].encode("ab\ud800")


@pytest.mark.parametrize("token", [-1, 49152, 10**9])
def test_ids_outside_the_vocabulary_are_refused(demo: Pair, token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is not in 0..49151"):
        demo[0].decode([token])
