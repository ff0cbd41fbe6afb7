"""Decode tokens one by one to text that consists of whole characters."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes tokens as they are generated.

    A character whose bytes are spread over several tokens is returned with the last of them.

    `at_start`: whether the first token begins a text. If so, a space that the model puts there is
    left out, and all parts together equal `Tokenizer.decode`. A continuation keeps the space.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, special: bool = False, at_start: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._drop_space = at_start and tokenizer.add_space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that `token_id` completes, if any.

        Raises ValueError for an id outside the vocabulary.
        """
        piece = self._tokenizer.token_bytes(token_id, special=self._special)
        if self._drop_space and piece.startswith(b" "):
            piece = piece[1:]
        self._drop_space = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """Return the remaining text at the end: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", True)
