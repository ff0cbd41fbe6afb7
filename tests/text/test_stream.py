"""Texts that are shown before all their tokens exist."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbllama
from nbllama.text import Tokenizer, beginning, whole_characters

TEXT = "渡船七点一刻出发，\N{GRINNING FACE} and the ferry"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Tokenizer:
    """A tokenizer that encodes Chinese characters byte by byte."""
    return nbllama.load_model(demo_model).tokenizer


def test_a_text_never_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    halves = 0
    for n in range(len(ids)):
        halves += "\ufffd" in tokenizer.decode(ids[:n])
        assert TEXT.startswith(whole_characters(tokenizer, ids[:n]))
        shown = beginning(tokenizer, ids, n)
        assert shown.endswith(ELLIPSIS) and TEXT.startswith(shown.removesuffix(ELLIPSIS))
    assert halves > 5  # the test would otherwise prove nothing
    assert whole_characters(tokenizer, ids) == TEXT


def test_a_complete_text_is_unchanged(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    for most in (len(ids), len(ids) + 1):
        assert beginning(tokenizer, ids, most) == TEXT
    # an answer that the model itself ended inside a character is shown as it is
    assert beginning(tokenizer, ids[:-8], 99) == tokenizer.decode(ids[:-8])
    assert beginning(tokenizer, [], 0) == ""
