"""Samples at start texts: each rule of the old tool on small texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import Rules, SampleStart, load_dataset, load_raw_text
from nbllama.errors import DataError
from nbllama.gguf_io import open_gguf
from nbllama.text import tokenizer_from_gguf
from tests.conftest import GOLDEN


class OneTokenAByte:
    """Ids are UTF-8 bytes; the longest token, "ab", has two."""

    bos_id, eos_id, n_vocab = 300, 301, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_parts(self, text: str) -> Iterator[list[int]]:
        yield self.encode(text)

    def special_text_in(self, text: str) -> str | None:
        return None

    def token_text(self, i: int) -> str:
        return "ab" if i == 256 else chr(i & 127)


TOY: Any = OneTokenAByte()


def samples(text: str, start: str, n_ctx: int = 9, **options: bool) -> list[str]:
    cut = SampleStart(start, **options)(text, TOY, n_ctx)
    assert cut.tokens.dtype == np.int32
    return [
        bytes(cut.tokens[b : b + n].astype(np.uint8).tolist()).decode()
        for b, n in zip(*cut.windows, strict=True)
    ]


def test_split() -> None:
    assert samples("x<a<bc<", "<") == ["a", "bc", ""]  # the text before the first one is dropped
    assert samples("x<a<bc<", "<", include=True) == ["<a", "<bc", "<"]
    assert samples("aaaaa", "aa") == ["", "a"]  # no overlaps, from the left
    assert samples("aaaaa", "aa", include=True) == ["aa", "aaa"]
    assert samples("你<好<。", "<") == ["好", "。"]
    assert samples("你好你们", "你") == ["好", "们"]


def test_overlapping_samples_reach_n_ctx_longest_tokens() -> None:
    text = "<abcdef<gh<i"
    assert samples(text, "<", 3, overlapping=True) == ["abcdef", "gh<i", "i"]
    assert samples(text, "<", 2, overlapping=True) == ["abcd", "gh<i", "i"]
    assert samples(text, "<", 2, overlapping=True, include=True) == ["<abc", "<gh<", "<i"]
    # to the end of the character that the last byte is in
    assert samples("<你好", "<", 1, overlapping=True) == ["你"]
    assert samples("<你好", "<", 2, overlapping=True) == ["你好"]


def test_a_text_without_the_mark() -> None:
    for old, kept in ((False, "abcdef"), (True, "cdef")):
        cut = SampleStart("<<", old=old)("abcdef", TOY, 9)
        assert bytes(cut.tokens.tolist()).decode() == kept
        assert "does not occur" in cut.notes[0]
    assert samples("abcdef", "<<", old=True, include=True) == ["abcdef"]
    assert samples("你好", "<", old=True) == ["好"]  # a character that was cut into goes whole
    assert samples("a", "<<", old=True) == [""]


def test_what_is_said() -> None:
    cut = SampleStart("<")("<<a<abcd<abc", TOY, 3)
    assert cut.notes == (
        "1 sample is empty; each becomes a single EOS token",
        "1 sample is truncated to the context of 3 tokens (longest: 4 tokens)",
        "2 samples are shorter than the context of 3 tokens (shortest: 0 tokens)",
    )


@given(st.text("ab<", max_size=30), st.sampled_from(["<", "<<", "ab"]))
def test_samples_are_the_pieces_of_the_text(text: str, start: str) -> None:
    if start in text:
        head, *parts = text.split(start)
        assert samples(text, start) == parts
        assert head + "".join(samples(text, start, include=True)) == text


def test_each_sample_is_tokenised_for_itself(spm: Any, tmp_path: Path) -> None:
    """So each gets the space that the tokenizer puts before a text."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"<the hen<the rat")
    data = load_raw_text(path, spm, 16, cutter=SampleStart("<"))
    begins, sizes = data.windows
    pieces = [data.tokens[b : b + n].tolist() for b, n in zip(begins, sizes, strict=True)]
    assert pieces == [spm.encode("the hen"), spm.encode("the rat")]
    assert spm.encode("the hen<the rat") != spm.encode("<") + pieces[0] + pieces[1]


def test_rules_and_cutting_are_in_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"<ab<abc<a")
    more: list[dict[str, Any]] = [
        {}, {"cutter": SampleStart("<")}, {"cutter": SampleStart("<", include=True)},
        {"rules": Rules(fill_with_next_samples=True)}, {"rules": Rules(pad=True)},
        {"rules": Rules(separate_with_bos=False)}, {"rules": Rules(sample_random_offsets=True)},
    ]  # fmt: skip
    prints = [load_raw_text(path, TOY, 4, **options).fingerprint for options in more]
    assert len(set(prints)) == len(prints)
    assert load_raw_text(path, TOY, 4, rules=Rules()).fingerprint == prints[0]
    through = load_dataset(path, TOY, 4, template=None, cutter=SampleStart("<"), rules=Rules())
    assert through.fingerprint == prints[1]


def test_the_old_tool_takes_a_byte_order_mark_for_text(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfab"
    assert load_raw_text("x", TOY, 4, content=content).tokens.tolist() == list(b"ab")
    kept = load_raw_text("x", TOY, 4, content=content, keep_mark=True)
    assert kept.tokens.tolist() == list(content)


def test_no_token_at_all() -> None:
    with pytest.raises(DataError, match="contains no tokens"):
        load_raw_text("x", TOY, 4, content=b"<", cutter=SampleStart("<"))


def test_run_b_of_the_old_tool() -> None:
    """The old tool's log has 63 samples."""
    with open_gguf(GOLDEN / "tiny-q4_k.gguf") as f:
        tokenizer = tokenizer_from_gguf(f)
    data = load_raw_text(GOLDEN / "hamlet.txt", tokenizer, 48, cutter=SampleStart("\n\n"))
    assert data.n_samples == 63
    assert len(data.tokens) == 5849
    assert len(set(data.tokens.tolist())) == 61
    assert data.notes == (
        "29 samples are truncated to the context of 48 tokens (longest: 1229 tokens)",
        "32 samples are shorter than the context of 48 tokens (shortest: 6 tokens)",
    )
