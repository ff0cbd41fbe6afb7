"""SentencePiece vocabularies in which the library and llama.cpp could differ."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from nbllama.errors import GGUFError
from nbllama.text.spm import SpmTokenizer, merge_pieces
from tests.oracle import LlamaVocab
from tests.text.conftest import Pair, load
from tests.text.strings import test_strings
from tests.text.vocabs import write_vocab

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
HEAD = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
Row = tuple[str, float, int] | tuple[bytes, float, int]


def write(path: Path, rows: Sequence[Row], **keys: object) -> Path:
    texts = [t if isinstance(t, bytes) else t.encode() for t, _, _ in rows]
    return write_vocab(
        path,
        "llama",
        texts,
        scores=[s for _, s, _ in rows],
        types=[t for _, _, t in rows],
        keys=keys,
    )


def check(path: Path, strings: list[str], own_merge: bool = False) -> SpmTokenizer:
    tokenizer = load(path)
    assert isinstance(tokenizer, SpmTokenizer)
    assert (tokenizer._library is None) == own_merge
    with LlamaVocab(path) as llama:
        for s in strings:
            for parse in (False, True):
                ids = tokenizer.encode(s, parse_special=parse)
                assert ids == llama.tokenize(s, False, parse), s
                assert tokenizer.decode_bytes(ids) == llama.detokenize(ids)
                assert tokenizer.encode_with_starts(s, parse_special=parse)[0] == ids
        for i in range(tokenizer.n_vocab):
            assert tokenizer.token_bytes(i) == llama.token_to_piece(i, True)
    return tokenizer


def words(alphabet: str, n: int, size: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(0, size))) for _ in range(n)]


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_score_ties(tmp_path: Path, levels: int) -> None:
    """Scores of few values: the leftmost of the best pairs is merged first."""
    rng = random.Random(levels)
    rows = [*HEAD, *BYTES, *((c, -1.0, NORMAL) for c in "abc")]
    for n in (2, 3, 4):
        rows += [
            ("".join(letters), -float(rng.randrange(levels)), NORMAL)
            for letters in itertools.product("abc", repeat=n)
            if rng.random() < 0.6
        ]
    check(write(tmp_path / "v.gguf", rows, add_space_prefix=False), words("abc", 600, 14))


def test_own_merge_equals_the_library(spm: Pair) -> None:
    tokenizer = spm[0]
    assert isinstance(tokenizer, SpmTokenizer)
    library = tokenizer._library
    assert library is not None
    for s in test_strings(500, [], seed=6):
        text = s.replace(" ", "\u2581")
        pieces = merge_pieces(text, tokenizer._ids, tokenizer._scores)
        assert "".join(pieces) == text
        assert [i for p in pieces for i in tokenizer._spell(p)] == library.EncodeAsIds(text)


def test_byte_token_that_merges_reach(tmp_path: Path) -> None:
    """llama.cpp reads "<0x0A>" in a text as the byte token if merges lead there."""
    rows = [*HEAD, *BYTES]
    rows += [
        (t, -float(i), NORMAL) for i, t in enumerate(["<0", "x0", "<0x0", "A>", *"<>x0A\u2581"])
    ]
    path = write(tmp_path / "v.gguf", rows)
    tokenizer = check(path, ["<0x0A>", "a<0x0A>\n<0x0A", *words("<0xA>\n ", 300, 12)], True)
    assert tokenizer.token_id("<0x0A>") in tokenizer.encode("<0x0A>")


def test_tokens_of_every_type_are_merged(tmp_path: Path) -> None:
    """Control, unknown, unused and user-defined tokens are merged to like any other."""
    rows = [*HEAD, *BYTES, *((c, -9.0, NORMAL) for c in "<>/sunk[]ab")]
    rows += [("<s", -1.0, UNUSED), ("</", -2.0, NORMAL), ("</s", -1.0, NORMAL)]
    rows += [("nk", -1.0, NORMAL), ("unk", -2.0, NORMAL), ("<unk", -3.0, NORMAL)]
    rows += [("ab", -1.0, UNUSED), ("[a", 0.0, CONTROL), ("ab]", 0.0, USER_DEFINED)]
    tokenizer = check(
        write(tmp_path / "v.gguf", rows, add_space_prefix=False),
        ["<s>", "</s>", "<unk>", "[ab]", *words("<>/sunk[]ab ", 500, 14)],
    )
    assert tokenizer.encode("<s>") == [1]
    assert tokenizer.encode("<unk>") == [0]


def test_special_tokens_inside_each_other(tmp_path: Path) -> None:
    """The longest special token wins everywhere, not the leftmost."""
    rows = [*HEAD, *BYTES, *((c, -9.0, NORMAL) for c in "abc\u2581")]
    rows += [("ab", 0.0, USER_DEFINED), ("bca", 0.0, USER_DEFINED), ("cab\u2581a", 0.0, CONTROL)]
    rows += [("aa", 0.0, USER_DEFINED), ("\u2581a", -1.0, NORMAL), (" b", 0.0, CONTROL)]
    tokenizer = check(write(tmp_path / "v.gguf", rows), words("abc \u2581", 800, 12))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("abca")] == ["\u2581a", "bca"]


@pytest.mark.parametrize("name", ["Phi-3 mini", "other"])
def test_spaces_after_special_tokens(tmp_path: Path, name: str) -> None:
    """Phi-3 drops white space after most of its special tokens."""
    rows = [*HEAD, *BYTES, ("<|user|>", 0.0, CONTROL), ("<|endoftext|>", 0.0, CONTROL)]
    rows += [("\u2581", -1.0, NORMAL), ("a", -2.0, NORMAL)]
    path = write(tmp_path / "v.gguf", rows, **{"general.name": name})
    special = ["<|user|>", "<|endoftext|>", "</s>", "<unk>", "<s>"]
    strings = [
        a + b + c + "a"
        for a in special
        for b in (" ", "\n \t", "\x0b", "\xa0 ", "")
        for c in special
    ]
    tokenizer = check(path, strings + [s + " " for s in special])
    ids, starts = tokenizer.encode_with_starts("<|user|> \na", parse_special=True)
    assert [ids[0], starts[0]] == [tokenizer.token_id("<|user|>"), 0]
    assert starts[1] == (10 if name == "Phi-3 mini" else 8)


def test_tokens_that_are_not_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and no bytes at all."""
    rows: list[Row] = [*HEAD, *BYTES, (b"\xe4\xbd", -1.0, NORMAL), ("", -1.0, NORMAL)]
    rows += [(b"a\xff", -1.0, NORMAL), ("a", -2.0, NORMAL), ("\u4f60", -3.0, NORMAL)]
    rows += [(" unknown", -1.0, NORMAL), (" <0x41>", -1.0, NORMAL), (" 259", -1.0, NORMAL)]
    rows += [("\0", -1.0, NORMAL), ("\t\n", -1.0, NORMAL), ("\n", -1.0, NORMAL)]
    rows += [("x" * 300, -1.0, NORMAL), ("\ufffd", -1.0, NORMAL), ("\u2047", -1.0, NORMAL)]
    rows += [("<pad>", 0.0, CONTROL), (" b", 0.0, CONTROL), ("\u2581", -5.0, NORMAL)]
    strings = [
        "a",
        "\u4f60a",
        "a\u5929",
        "\xff",
        "\0a\0\0",
        "\t\n\n",
        "\ufffd\u2047",
        " unknown A b",
    ]
    tokenizer = check(
        write(tmp_path / "v.gguf", rows), [*strings, " <0x41> 259", "x" * 300, "<pad>"]
    )
    assert tokenizer.token_bytes(259) == b"\xe4\xbd"
    assert tokenizer.token_text(260) == "[EMPTY_260]"
    assert tokenizer.decode([259, 228 + 3]) == "\ufffd\ufffd"


def test_missing_byte_token_is_told(tmp_path: Path) -> None:
    """llama.cpp ends the process here."""
    rows = [*HEAD, *BYTES[:200], ("a", -1.0, NORMAL), ("\u2581", -1.0, NORMAL)]
    path = write(tmp_path / "v.gguf", rows)
    tokenizer = load(path)
    with LlamaVocab(path) as llama:
        assert tokenizer.encode("a b") == llama.tokenize("a b")
    with pytest.raises(GGUFError, match=r"v.gguf: .*has no token, and .*<0xE4> is missing"):
        tokenizer.encode("a\u4f60")
