"""Decode tokens one by one into whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class StreamDecoder:
    """A decoder for tokens as they are generated.

    A character whose bytes span several tokens is returned with the last of these tokens.

    `at_start` means that the first token begins a text. In that case, a space that the model adds
    at the start is removed, and the concatenated parts equal the result of `Tokenizer.decode`. A
    continuation keeps the space.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, special: bool = False, at_start: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._drop_space = at_start and tokenizer.add_space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add a token, and return the characters that it completes, if any.

        Raises ValueError for an id outside the vocabulary.
        """
        piece = self._tokenizer.token_bytes(token_id, special=self._special)
        if self._drop_space and piece.startswith(b" "):
            piece = piece[1:]
        self._drop_space = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Return the remaining text at the end, with U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", True)


def whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of `ids`, omitting an incomplete character at the end."""
    decoder = StreamDecoder(tokenizer, at_start=True)
    return "".join(map(decoder.push, ids))


def beginning(tokenizer: Tokenizer, ids: Sequence[int], most: int) -> str:
    """Return the text of the first `most` ids for display, followed by "…" if there are more."""
    if len(ids) <= most:
        return tokenizer.decode(ids)
    return whole_characters(tokenizer, ids[:most]).rstrip() + "\N{HORIZONTAL ELLIPSIS}"
