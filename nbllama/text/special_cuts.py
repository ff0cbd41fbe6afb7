"""Split text at special tokens, like llama.cpp's `tokenizer_st_partition`.

The remaining plain text is searched from left to right for one special token at a time, longest
first. In most vocabularies, no special token can begin inside another and end after it. In that
case, a single search for all tokens gives the same result and is several times faster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

_SPACES = " \t\n\v\f\r"

Part = tuple[int, int, int | None]
"""A part of a text: (start, end, id of the special token or None for plain text)."""


class Special(NamedTuple):
    """A special token; `strips` means that it absorbs the white space that follows."""

    id: int
    text: str
    strips: bool


class SpecialCuts:
    """An object that splits text at special tokens, which are passed longest first."""

    def __init__(self, tokens: Sequence[Special]) -> None:
        self._tokens = [token for token in tokens if token.text]

    def cut(self, text: str) -> list[Part]:
        """Return the parts of `text`, in order."""
        return self._one_by_one(text) if self._any is None else self._together(text, self._any)

    @cached_property
    def _any(self) -> re.Pattern[str] | None:
        """The pattern for a single search for all tokens, or None if the result could differ."""
        texts = list(self._ids)
        if any(token.strips for token in self._tokens):
            return None
        begins = {text[:n] for text in texts for n in range(1, len(text))}
        if any(text[n:] in begins for text in texts for n in range(1, len(text))):
            return None
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for token in self._tokens:
            ids.setdefault(token.text, token.id)
        return ids

    def _together(self, text: str, pattern: re.Pattern[str]) -> list[Part]:
        parts: list[Part] = []
        at = 0
        for found in pattern.finditer(text):
            start, end = found.span()
            if start > at:
                parts.append((at, start, None))
            parts.append((start, end, self._ids[found[0]]))
            at = end
        if at < len(text):
            parts.append((at, len(text), None))
        return parts

    def _one_by_one(self, text: str) -> list[Part]:
        parts: list[Part] = [(0, len(text), None)] if text else []
        for token in self._tokens:
            if token.text not in text:
                continue
            cut: list[Part] = []
            for start, end, of in parts:
                at = text.find(token.text, start, end) if of is None else -1
                while at >= 0:
                    if at > start:
                        cut.append((start, at, None))
                    start = at + len(token.text)
                    cut.append((at, start, token.id))
                    if token.strips:
                        while start < end and text[start] in _SPACES:
                            start += 1
                    at = text.find(token.text, start, end)
                if start < end:
                    cut.append((start, end, of))
            parts = cut
        return parts
