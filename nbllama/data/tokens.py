"""Tokenise the prompts and answers of a chat; common beginnings of prompts are tokenised once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nbllama.data.spans import Placed, encode_marked, with_bos

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer

_TAILS = 1000

Ranges = Sequence[tuple[int, int]]


class Tokens(NamedTuple):
    """The ids of a text, in which the character ranges `plain` were not parsed for special tokens.

    A prompt begins with BOS if the tokenizer adds BOS. `continues` says whether the text follows
    other plain text. For a truncated answer, the ids cover only part of the text.
    """

    text: str
    ids: list[int]
    plain: Ranges = ()
    continues: bool = False

    def placed(self, tokenizer: Tokenizer) -> Placed:
        """Return the ids with the characters that each id covers."""
        found = encode_marked(tokenizer, self.text, self.plain, continues=self.continues)
        if self.ids[:1] != found.ids[:1].tolist():
            found = with_bos(tokenizer, found)
        return Placed(*(half[: len(self.ids)] for half in found))


class Whole(NamedTuple):
    """A tokenised prompt whose ids can be reused for shorter prompts with the same beginning.

    `ids` does not include BOS. `special` contains a tuple (start, end, number of preceding ids) for
    each special token.
    """

    text: str
    ids: list[int]
    special: list[tuple[int, int, int]]


class ChatTokens:
    """A tokenizer for the prompts and answers of one chat, which are passed from last to first.

    `tails` maps the ends of prompts, each starting at the last special token, to their ids. Pass
    the same `tails` for later chats.
    """

    def __init__(self, tokenizer: Tokenizer, tails: dict[str, list[int]]) -> None:
        self._tokenizer = tokenizer
        self._tails = tails
        self._whole: Whole | None = None

    def prompt(self, prompt: str) -> Tokens:
        """Tokenise a prompt.

        If the first prompt that was tokenised begins with this one, the common ids are reused up to
        the last special token. They do not change, because the tokenizer splits the text at special
        tokens.
        """
        whole = self._whole
        if whole is not None and whole.text.startswith(prompt):
            for start, end, n in reversed(whole.special):
                if end <= len(prompt):
                    return Tokens(prompt, self._begun(whole.ids[:n] + self._tail(prompt[start:])))
        found = self._cut_whole(prompt)
        self._whole = whole or found
        return Tokens(prompt, self._begun(found.ids))

    def marked_prompt(self, prompt: str, plain: Ranges) -> Tokens:
        """Tokenise a prompt without parsing special tokens in the character ranges `plain`."""
        return Tokens(prompt, self._begun(self._placed(prompt, plain).ids.tolist()), plain)

    def answer(
        self, text: str, words: int, *, plain: Ranges = (), continues: bool = False
    ) -> tuple[Tokens, int]:
        """Tokenise an answer and find its end.

        The answer ends with the first end-of-generation token after its first `words` characters.
        Also returns the position of this end in `text`. `continues` means that the answer follows
        other plain text.
        """
        eog = self._tokenizer.eog_ids
        ids: list[int] = []
        pieces = [] if plain else self._tokenizer.encode_pieces(text, continues=continues)
        for start, token, of in pieces:
            if token is None and not eog.isdisjoint(of):
                break  # plain text contains an end token, whose position is needed
            ids += of
            if token is not None and start >= words and token in eog:
                end = start + len(self._tokenizer.token_text(token))
                return Tokens(text, ids, plain, continues), end
        else:
            if not plain:
                return Tokens(text, ids, plain, continues), len(text)
        placed = self._placed(text, plain, continues)
        ids = placed.ids.tolist()
        for i in range(bisect_left(placed.starts, words), len(ids)):
            if ids[i] in eog:
                end = int(placed.starts[i]) + len(self._tokenizer.token_text(ids[i]))
                return Tokens(text, ids[: i + 1], plain, continues), end
        return Tokens(text, ids, plain, continues), len(text)

    def _cut_whole(self, prompt: str) -> Whole:
        ids: list[int] = []
        special = []
        for start, token, of in self._tokenizer.encode_pieces(prompt):
            if token is not None:
                special.append((start, start + len(self._tokenizer.token_text(token)), len(ids)))
            ids += of
        return Whole(prompt, ids, special)

    def _placed(self, text: str, plain: Ranges, continues: bool = False) -> Placed:
        return encode_marked(self._tokenizer, text, plain, continues=continues)

    def _tail(self, text: str) -> list[int]:
        found = self._tails.get(text)
        if found is None:
            found = [i for _, _, of in self._tokenizer.encode_pieces(text) for i in of]
            if len(self._tails) < _TAILS:
                self._tails[text] = found
        return found

    def _begun(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids
