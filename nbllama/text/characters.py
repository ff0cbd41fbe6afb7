"""Group tokens so that each group consists of whole characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class Group(NamedTuple):
    r"""Tokens `first` to `last` (inclusive) of a sequence, and their text.

    Bytes that are not part of a character are written as `\xHH`.
    """

    first: int
    last: int
    text: str


def character_groups(
    tokenizer: Tokenizer, ids: Sequence[int], apart: Sequence[bool] | None = None
) -> list[Group]:
    """Divide the tokens into the smallest groups that form whole characters.

    A byte-level vocabulary can split a single character, for example in Chinese, into several
    tokens. Tokens with different flags in `apart` are never in the same group.
    """
    groups: list[Group] = []
    held, first = b"", 0
    for n, token in enumerate(ids):
        if apart is not None and held and apart[n] != apart[n - 1]:
            groups.append(Group(first, n - 1, _escaped(held)))
            held = b""
        if not held:
            first = n
        held += tokenizer.token_bytes(token)
        try:
            text = held.decode("utf-8")
        except UnicodeDecodeError as e:
            if e.reason == "unexpected end of data":
                continue  # the next token may complete the character
            text = _escaped(held)
        groups.append(Group(first, n, text))
        held = b""
    if held:
        groups.append(Group(first, len(ids) - 1, _escaped(held)))
    return groups


def _escaped(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
