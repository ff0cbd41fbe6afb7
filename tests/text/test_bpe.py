"""Byte-level BPE vocabularies in which the library and llama.cpp could differ."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from nbllama.text.bpe import BYTE_CHARACTERS
from tests.oracle import LlamaVocab
from tests.text.conftest import load
from tests.text.vocabs import write_vocab

LETTERS = list(BYTE_CHARACTERS.values())
SPACE = BYTE_CHARACTERS[32]


def check(path: Path, strings: list[str]) -> None:
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        for s in strings:
            for parse in (False, True):
                ids = tokenizer.encode(s, parse_special=parse)
                assert ids == llama.tokenize(s, False, parse), s
                assert tokenizer.encode_with_starts(s, parse_special=parse)[0] == ids
                pieces = b"".join(llama.token_to_piece(i) for i in ids)
                assert tokenizer.decode_bytes(ids) == pieces
        for i in range(tokenizer.n_vocab):
            assert tokenizer.token_bytes(i) == llama.token_to_piece(i, True), i


def words(alphabet: str, n: int, size: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(alphabet, k=rng.randint(0, size))) for _ in range(n)]


def test_byte_characters_are_gpt2s() -> None:
    assert len(set(LETTERS)) == 256
    assert [BYTE_CHARACTERS[b] for b in (0, 32, 33, 127, 173, 255)] == [
        *"\u0100\u0120!\u0121\u0143\xff"
    ]


def test_dropped_bytes_keep_their_neighbours_apart(tmp_path: Path) -> None:
    """A byte without a token is omitted, and no merge crosses its place."""
    tokens = [c for c in LETTERS if c not in (BYTE_CHARACTERS[4], "x", BYTE_CHARACTERS[0xE4])]
    tokens += ["ab", "aa", "abb"]
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", tokens, merges=["a b", "a a", "ab b"], pre="gpt-2")
    check(path, ["axb", "a\x04b", "aaxbxab", "\u4f60a", *words("abx\x04", 300, 9)])
    tokenizer = load(path)
    ids, starts = tokenizer.encode_with_starts("axxb\u4f60ab")
    assert starts == [0, 3, 4, 4, 5]
    assert [tokenizer.token_bytes(i) for i in ids] == [b"a", b"b", b"\xbd", b"\xa0", b"ab"]


def test_merge_listed_twice_keeps_its_first_rank(tmp_path: Path) -> None:
    tokens = [*LETTERS, "ab", "bc", "abc"]
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", tokens, merges=["a b", "b c", "a b", "ab c"], pre="gpt-2")
    check(path, ["abc", *words("abc", 200, 9)])
    assert load(path).encode("abc") == [len(tokens) - 1]


def test_merge_order(tmp_path: Path) -> None:
    """Merges in random order, over words of two letters."""
    rng = random.Random(2)
    known = ["a", "b"]
    merges = []
    for left, right in itertools.product(["a", "b", "ab", "ba", "aab", "bb"], repeat=2):
        if left in known and right in known and left + right not in known:
            known.append(left + right)
            merges.append(f"{left} {right}")
    rng.shuffle(merges)
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", [*LETTERS, *known[2:]], merges=merges, pre="qwen2")
    check(path, words("ab", 600, 16))


def test_tokens_of_every_type(tmp_path: Path) -> None:
    """User-defined, control, unused and byte tokens; characters that stand for no byte; bytes that
    are no UTF-8; an empty text."""
    extra: list[tuple[bytes, int]] = [
        (b"<user>", 4),
        (b"<control>", 3),
        (b"<unknown>", 2),
        (b"unused", 5),
        (b"<0x41>", 6),
        ("a\u4f60b".encode(), 1),
        ("\u4f60".encode(), 4),
        (b"\xe4\xbd", 1),
        (b"", 1),
        (b"  ", 4),
        (b"plain", 0),
        (b"ab", 1),
    ]
    tokens = [c.encode() for c in LETTERS] + [t for t, _ in extra]
    types = [1] * 256 + [t for _, t in extra]
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", tokens, types=types, merges=["a b"], pre="llama-bpe")
    texts = [t.decode() for t, _ in extra if t not in (b"\xe4\xbd", b"")]
    check(path, [a + b + "x" for a in texts for b in [*texts, " ", "  ", "   "]])


def test_no_token_types(tmp_path: Path) -> None:
    tokens = [*LETTERS, "ab", "<|im_end|>", "[CLS]"]
    path = tmp_path / "v.gguf"
    write_vocab(path, "gpt2", tokens, merges=["a b"], pre="default")
    check(path, ["ab<|im_end|>[CLS]", "a b"])
    tokenizer = load(path)
    assert tokenizer.eog_ids == {11, 257}  # llama.cpp's default eos, and by its text
