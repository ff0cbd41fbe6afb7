"""Tokens that are parts of characters are shown as characters."""

from __future__ import annotations

from typing import Any

from nbllama.text.characters import Group, character_groups


class Pieces:
    """Token i is the i-th of some bytes."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def groups(*pieces: bytes, apart: list[bool] | None = None) -> list[Group]:
    tokenizer: Any = Pieces(*pieces)
    return character_groups(tokenizer, range(len(pieces)), apart)


def test_whole_characters_stay_tokens_and_parts_are_joined() -> None:
    moon = "月".encode()
    assert groups(b"a", moon[:1], moon[1:2], moon[2:] + b"b", "明".encode()) == [
        (0, 0, "a"), (1, 3, "月b"), (4, 4, "明"),
    ]  # fmt: skip
    # a token may end one character and begin the next
    assert groups(b"x" + moon[:2], moon[2:] + moon[:1], moon[1:]) == [(0, 2, "x月月")]


def test_bytes_of_no_character_are_written_out() -> None:
    assert groups(b"\xff", b"a", b"\xe6\x9c") == [
        (0, 0, r"\xff"), (1, 1, "a"), (2, 2, r"\xe6\x9c"),
    ]  # fmt: skip
    assert groups(b"\xe6", b"a") == [(0, 1, r"\xe6a")]


def test_a_group_does_not_reach_across_a_border() -> None:
    moon = "月".encode()
    assert groups(moon[:1], moon[1:], apart=[False, True]) == [
        (0, 0, r"\xe6"), (1, 1, r"\x9c\x88"),
    ]  # fmt: skip
