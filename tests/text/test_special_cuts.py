"""Cutting a text at special tokens: one search for all equals searching one by one."""

from __future__ import annotations

import itertools

import pytest

from nbllama.text.special_cuts import Special, SpecialCuts

APART = ["<|im_start|>", "<|im_end|>", "<|im", "start", "x", "<s>"]
OVERLAPPING = ["<<a", "a<", "<b>", ">"]


def cuts_of(texts: list[str], strips: bool = False) -> SpecialCuts:
    texts = sorted(texts, key=lambda t: -len(t))
    return SpecialCuts([Special(n, text, strips) for n, text in enumerate(texts)])


@pytest.mark.parametrize("texts", [APART, OVERLAPPING], ids=["apart", "overlapping"])
def test_the_parts_are_those_of_one_token_after_the_other(texts: list[str]) -> None:
    """All texts of four pieces: tokens, and letters that tokens are made of."""
    cuts = cuts_of(texts)
    assert (cuts._any is None) == (texts is OVERLAPPING)
    for pieces in itertools.product([*texts, "<", "a", "|>", " "], repeat=4):
        text = "".join(pieces)
        parts = cuts.cut(text)
        assert parts == cuts._one_by_one(text), text
        assert "".join(text[start:end] for start, end, _ in parts) == text


def test_the_longest_comes_first() -> None:
    cuts = cuts_of(["<b>", "<b>x", "q"])
    assert cuts.cut("a<b>x<b>q") == [(0, 1, None), (1, 5, 0), (5, 8, 1), (8, 9, 2)]


def test_white_space_after_a_token_is_stripped() -> None:
    assert cuts_of(["<s>"], strips=True).cut("<s> \n a") == [(0, 3, 0), (6, 7, None)]


def test_nothing_and_no_tokens() -> None:
    assert cuts_of([]).cut("") == []
    assert cuts_of([]).cut("abc") == [(0, 3, None)]
    assert cuts_of(["", "<s>"]).cut("a") == [(0, 1, None)]
