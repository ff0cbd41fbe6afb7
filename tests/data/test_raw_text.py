from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import RawText, load_raw_text
from nbllama.data.cutters import Cut, Windows, every_token
from nbllama.data.raw_text import first_token
from nbllama.errors import DataError
from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, tokenizer_from_gguf
from tests.conftest import GOLDEN


class OneTokenAByte:
    """A simple tokenizer: ids are UTF-8 bytes; BOS 300, EOS 301."""

    bos_id: int | None = 300
    eos_id: int | None = 301

    def encode(self, text: str, **options: Any) -> list[int]:
        assert not any(options.values()), "raw text takes no special tokens"
        return list(text.encode())

    def encode_parts(self, text: str, **options: Any) -> Iterator[list[int]]:
        ids = self.encode(text, **options)
        yield from (ids[i : i + 3] for i in range(0, len(ids), 3))


TOY: Any = OneTokenAByte()


def old_tool_rows(data: list[int], n_ctx: int, bos: int) -> list[tuple[list[int], list[int]]]:
    """The rows of finetune-2024 for a text without options, written from its description.

    Windows as in `tokenize_file`; rows as in `get_example_targets_batch`, except for the EOS
    padding of a short row.
    """
    windows = [(0, min(n_ctx, len(data)))]
    windows += [(begin, n_ctx) for begin in range(1, max(0, len(data) - n_ctx))]
    rows = []
    for begin, size in windows:
        inputs, targets = [bos], []
        for i in range(size):
            targets.append(data[begin + i])
            if i + 1 < size:
                inputs.append(data[begin + i])
        rows.append((inputs, targets))
    return rows


@given(content=st.binary(min_size=1, max_size=40).map(lambda b: bytes(c & 127 for c in b)),
       n_ctx=st.integers(1, 45))  # fmt: skip
def test_samples_are_the_old_tools(content: bytes, n_ctx: int) -> None:
    data = load_raw_text("x.txt", TOY, n_ctx, content=content)
    expected = old_tool_rows(list(content), n_ctx, 300)
    assert data.kind == "raw"
    assert data.n_samples == len(expected) == max(1, len(content) - n_ctx)
    for i, (inputs, targets) in enumerate(expected):
        batch = data.batch([i])
        assert batch.tokens.tolist() == inputs
        assert batch.targets.tolist() == targets
        assert data.n_tokens(i) == data.n_trained(i) == batch.n_trained == len(targets)
    whole = data.batch(range(data.n_samples))
    assert whole.tokens.tolist() == [t for row in expected for t in row[0]]
    assert whole.targets.tolist() == [t for row in expected for t in row[1]]
    assert whole.positions.tolist() == [p for row in expected for p in range(len(row[0]))]
    lengths = [len(row[0]) for row in expected]
    assert whole.seq_offsets.tolist() == np.cumsum([0, *lengths]).tolist()


def test_a_batch_keeps_the_order_it_is_asked_for() -> None:
    data = load_raw_text("x.txt", TOY, 2, content=b"abcdef")
    batch = data.batch([3, 0, 3])
    assert batch.targets.tolist() == [*b"de", *b"ab", *b"de"]
    assert batch.tokens.tolist() == [300, ord("d"), 300, ord("a"), 300, ord("d")]


def test_a_short_text_is_one_short_row_without_padding() -> None:
    data = load_raw_text("x.txt", TOY, 128, content=b"abc")
    batch = data.batch([0])
    assert (data.n_samples, batch.n_tokens, batch.n_trained) == (1, 3, 3)
    assert batch.tokens.tolist() == [300, *b"ab"] and batch.targets.tolist() == list(b"abc")
    assert data.notes == ("the text has only 3 tokens, so it is trained on as a single sample",)
    assert load_raw_text("x.txt", TOY, 3, content=b"abc").notes == ()


def test_sample_out_of_range() -> None:
    data = load_raw_text("x.txt", TOY, 2, content=b"abcdef")
    assert data.n_samples == 4
    for i in (-1, 4):
        for call in (data.n_tokens, data.n_trained, lambda i: data.batch([i])):
            with pytest.raises(IndexError):
                call(i)


def test_specials_in_the_text_are_plain_text(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("the<|im_end|>", encoding="utf-8")
    data = load_raw_text(path, bpe, 64)
    assert 2 not in data.tokens
    assert bpe.decode(data.tokens.tolist()) == "the<|im_end|>"


def test_text_is_tokenised_whole(spm: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    text = "the hand\nand the rest\r\n"
    path.write_bytes(text.encode())
    data = load_raw_text(path, spm, 4)
    assert data.tokens.tolist() == spm.encode(text)
    assert data.first == spm.bos_id == 1
    assert data.batch([0]).tokens[0] == 1


def test_first_token_is_bos_else_eos() -> None:
    class Toy(OneTokenAByte):
        pass

    toy: Any = Toy()
    assert first_token(toy) == 300
    toy.bos_id = None
    assert first_token(toy) == 301
    assert load_raw_text("x.txt", toy, 8, content=b"ab").batch([0]).tokens.tolist() == [301, 97]
    toy.eos_id = None
    with pytest.raises(DataError, match="neither a BOS nor an EOS"):
        load_raw_text("x.txt", toy, 8, content=b"ab")


def test_byte_order_mark_is_not_text() -> None:
    plain = load_raw_text("x.txt", TOY, 2, content="hé".encode())
    marked = load_raw_text("x.txt", TOY, 2, content=b"\xef\xbb\xbf" + "hé".encode())
    assert marked.tokens.tolist() == plain.tokens.tolist() == list("hé".encode())
    assert marked.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty: it contains no tokens"),
        (b"ab\ncd\xff\n", "not UTF-8: byte 0xff at offset 5, line 2;"),
        (b"caf\xc3", "not UTF-8: byte 0xc3 at offset 3, line 1;"),
        (b"\xef\xbb\xbfa\x80", "not UTF-8: byte 0x80 at offset 4, line 1;"),
        (b"\xed\xa0\x80", "not UTF-8: byte 0xed at offset 0"),
        ("text".encode("utf-16-le"), "NUL bytes; it looks like UTF-16LE without a byte-order mark"),
        (
            "text".encode("utf-16") + b"x",
            "begins with the byte-order mark of UTF-16, but is damaged at byte",
        ),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad\n.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_raw_text(path, TOY, 8)
    assert "\n" not in str(caught.value) and "bad\\n.txt" in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_raw_text(tmp_path / "none.txt", TOY, 8)
    with pytest.raises(DataError, match="cannot read training data"):
        load_raw_text(tmp_path, TOY, 8)


def test_n_ctx_must_be_positive() -> None:
    with pytest.raises(ValueError):
        load_raw_text("x.txt", TOY, 0, content=b"ab")


def test_fingerprint_follows_content_and_options(tmp_path: Path) -> None:
    def of(content: bytes, n_ctx: int = 4, name: str = "a.txt", **toy: int) -> str:
        tokenizer: Any = OneTokenAByte()
        vars(tokenizer).update(toy)
        path = tmp_path / name
        path.write_bytes(content)
        return load_raw_text(path, tokenizer, n_ctx).fingerprint

    first = of(b"some text")
    assert len(first) == 64 and int(first, 16) >= 0
    assert of(b"some text", name="b.txt") == first
    others = {of(b"some texT"), of(b"some text", 5), of(b"some text", bos_id=299)}
    assert len(others | {first}) == 4


def test_other_cutters_fit_in() -> None:
    """A cutter may choose any windows; rows, counts and the fingerprint follow."""

    def lines(text: str, tokenizer: Tokenizer, n_ctx: int) -> Cut:
        parts = [tokenizer.encode(line) for line in text.split("\n")]
        sizes = np.array([min(n_ctx, len(p)) for p in parts])
        begins = np.cumsum([0] + [len(p) for p in parts[:-1]])
        return Cut(np.array([t for p in parts for t in p], np.int32), Windows(begins, sizes))

    data = load_raw_text("x.txt", TOY, 3, cutter=lines, content=b"ab\ncdefg\nh")
    assert [data.n_tokens(i) for i in range(data.n_samples)] == [2, 3, 1]
    batch = data.batch([1, 2])
    assert batch.targets.tolist() == [*b"cde", *b"h"]
    assert batch.tokens.tolist() == [300, *b"cd", 300]
    assert data.notes == ()
    other = load_raw_text("x.txt", TOY, 3, content=b"ab\ncdefg\nh")
    assert isinstance(data, RawText) and data.fingerprint != other.fingerprint


def test_golden_run_of_the_old_tool() -> None:
    """Its log says: 5968 samples, 6000 training tokens, 61 unique ones (--ctx 32)."""
    with open_gguf(GOLDEN / "tiny-q8_0.gguf") as f:
        tokenizer = tokenizer_from_gguf(f)
    data = load_raw_text(GOLDEN / "hamlet.txt", tokenizer, 32)
    assert data.n_samples == 5968
    assert len(data.tokens) == 6000
    assert len(set(data.tokens.tolist())) == 61
    assert data.first == 1


def test_every_token_is_the_default() -> None:
    cut = every_token("abcdef", TOY, 4)
    assert cut.windows.begins.tolist() == [0, 1] and cut.windows.sizes.tolist() == [4, 4]
    assert cut.tokens.dtype == np.int32
