"""Convert text to token ids and back, using the same ids as llama.cpp.

`Tokenizer` splits text at special tokens, adds bos and eos, and converts ids back to bytes. Its
subclasses (`spm`, `bpe`, `spaced_bpe`) tokenise the plain text between special tokens. Sources:
llama.cpp, src/llama-vocab.cpp, `tokenizer_st_partition`, `tokenize`, `token_to_piece`,
`detokenize`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np

from nbllama.errors import DataError
from nbllama.text.special_cuts import Special, SpecialCuts
from nbllama.text.special_tokens import BYTE, CONTROL, NORMAL, RSTRIP, UNKNOWN, USER_DEFINED
from nbllama.text.vocab import Vocab, byte_value

_KEPT = 1_000_000  # characters in texts whose ids are cached


Piece = tuple[int, int | None, list[int]]
"""A special token in a text, or the plain text between two special tokens.

The elements are the index of its first character, the id of the special token (None for plain
text), and the list of token ids.
"""


class Tokenizer(ABC):
    """The tokenizer for one GGUF file, created by `from_gguf.tokenizer_from_gguf`.

    `path` is the model file. `bos_id`, `eos_id`, `eot_id` and `pad_id` are None if the file has no
    such token. `eog_ids` are the ids that end an answer, and `special_ids` are the ids of tokens at
    which text is split.
    """

    CHUNK = 1 << 18

    def __init__(self, vocab: Vocab) -> None:
        self.path = vocab.path
        self.n_vocab = len(vocab.texts)
        self.bos_id = vocab.roles.get("bos")
        self.eos_id = vocab.roles.get("eos")
        self.eot_id = vocab.roles.get("eot")
        self.pad_id = vocab.roles.get("pad")
        self.add_bos = vocab.add_bos
        self.add_eos = vocab.add_eos
        self.add_space_prefix = vocab.add_space_prefix
        self.eog_ids = vocab.eog_ids
        self.chat_template = vocab.chat_template
        self._ids = vocab.ids
        self._texts = vocab.texts
        self._attrs = vocab.attrs
        special = [
            i for i, attr in enumerate(vocab.attrs) if attr & (CONTROL | USER_DEFINED | UNKNOWN)
        ]
        # Longest first, in bytes. llama.cpp sorts tokens of equal length with an unstable sort.
        special.sort(key=lambda i: -len(self._texts[i].encode()))
        self._special = [(i, self._texts[i]) for i in special]
        self.special_ids = frozenset(special)
        tokens = [Special(i, self._texts[i], bool(self._attrs[i] & RSTRIP)) for i in special]
        kinds = CONTROL | UNKNOWN
        self._cuts = SpecialCuts(tokens)
        self._user_cuts = SpecialCuts([s for s in tokens if not self._attrs[s.id] & kinds])
        self._pieces: dict[int, bytes] = {}
        self._kept: dict[str, list[int]] = {}  # ids of plain text
        self._kept_size = 0
        self._warm: dict[str, list[Piece]] = {}  # texts from the last call to `warm`
        self._prefix = ""  # prepended to plain text at the start and after a special token

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of `text`, which are the same as those from `llama_tokenize`.

        `add_special` adds bos before and eos after the ids if the model requires them. With
        `parse_special`, the text of a control token is converted to that token. The text of a
        user-defined token is always converted. Raises DataError if `text` contains lone surrogates,
        which are not valid UTF-8.
        """
        ids = [i for part in self.encode_parts(text, parse_special=parse_special) for i in part]
        return self._with_bos_eos(ids) if add_special else ids

    def encode_parts(self, text: str, *, parse_special: bool = False) -> Iterator[list[int]]:
        """Yield the ids from `encode` in parts, without bos and eos.

        Parts are limited to about `CHUNK` characters, because the libraries use about 100 bytes of
        working memory per character.
        """
        for token_id, prefix, start, end in self._fragments(text, parse_special):
            if token_id is not None:
                yield [token_id]
                continue
            plain, at = prefix + text[start:end], 0
            while at < len(plain):
                stop = len(plain)
                if at + self.CHUNK < stop:
                    stop = self._safe_cut(plain, at + self.CHUNK)
                yield self._encode_plain(plain[at:stop])
                at = stop

    def encode_with_starts(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = False,
        continues: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Return the ids from `encode`, and the index in `text` of each id's first character.

        For a token that starts inside a character, the index is that of the character; for bos, it
        is 0, and for eos, it is `len(text)`. The indices never decrease. `continues` means that
        `text` follows other plain text, so no space is prepended.
        """
        ids, starts = self.encode_arrays(text, parse_special=parse_special, continues=continues)
        if add_special:
            n_bos = int(self.add_bos and self.bos_id is not None)
            n_eos = int(self.add_eos and self.eos_id is not None)
            places = [0] * n_bos + starts.tolist() + [len(text)] * n_eos
            return self._with_bos_eos(ids.tolist()), places
        return ids.tolist(), starts.tolist()

    def encode_arrays(
        self, text: str, *, parse_special: bool = False, continues: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and starts without bos and eos, as int32 [n] and int64 [n] arrays."""
        parts: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for token_id, prefix, start, end in self._fragments(text, parse_special):
            if token_id is not None:
                parts.append(np.array([token_id], np.int32))
                places.append(np.array([start], np.int64))
            else:
                if continues and start == 0:
                    prefix = ""
                ids, at = self._locate(prefix + text[start:end])
                parts.append(ids)
                places.append((np.maximum(at - len(prefix), 0) if prefix else at) + start)
        if not parts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        return np.concatenate(parts), np.concatenate(places)

    def encode_pieces(self, text: str, *, continues: bool = False) -> list[Piece]:
        """Return the ids of `text`, parsing special tokens and splitting at them.

        For `continues`, see `encode_with_starts`. Ids of recent texts are cached, because later
        prompts often contain the same texts.
        """
        if not (continues and self._prefix) and (found := self._warm.get(text)) is not None:
            return found
        _check_unicode(text)
        return self._pieces_of([text], continues)[0]

    def warm(self, texts: Iterable[str]) -> None:
        """Tokenise texts in one batch, so that later calls to `encode_pieces` return quickly.

        A single call for all texts is faster than one call per text.
        """
        good = [text for text in dict.fromkeys(texts) if _is_unicode(text)]
        self._warm = dict(zip(good, self._pieces_of(good, False), strict=True))

    def _pieces_of(self, texts: list[str], continues: bool) -> list[list[Piece]]:
        """Return the result of `encode_pieces` for each text."""
        kept = self._kept
        new: dict[str, list[int]] = {}  # filled at the end
        out: list[list[Piece]] = []
        for text in texts:
            pieces: list[Piece] = []
            prefix = "" if continues else self._prefix
            for start, end, token in self._cuts.cut(text):
                if token is not None:
                    pieces.append((start, token, [token]))
                    prefix = self._prefix
                    continue
                plain = prefix + text[start:end]
                ids = kept.get(plain)
                if ids is None:
                    ids = new.setdefault(plain, [])
                pieces.append((start, None, ids))
                prefix = ""
            out.append(pieces)
        for (plain, ids), encoded in zip(new.items(), self._encode_all(list(new)), strict=True):
            ids += encoded
            self._keep(plain, ids)
        return out

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        """Return the result of `_encode_plain` for each text."""
        return [self._encode_plain(text) for text in texts]

    def _keep(self, text: str, ids: list[int]) -> None:
        self._kept_size += len(text)
        if self._kept_size > _KEPT:
            self._kept = {}
            self._kept_size = len(text)
        self._kept[text] = ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Return the text of `ids`, replacing invalid UTF-8 with U+FFFD. See `decode_bytes`."""
        return self.decode_bytes(ids, special=special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """Return the bytes of `ids`.

        Control and unknown tokens are included only if `special` is set.

        If the model adds a space before a text, one space at the start of the first token is
        removed. The result is the same as that of `llama_detokenize`, except that this method keeps
        spaces before punctuation, which llama.cpp drops for some vocabularies. Raises ValueError
        for an id outside the vocabulary.
        """
        pieces = [self.token_bytes(i, special=special) for i in ids]
        if self.add_space_prefix and pieces and pieces[0].startswith(b" "):
            pieces[0] = pieces[0][1:]
        return b"".join(pieces)

    def token_bytes(self, token_id: int, *, special: bool = True) -> bytes:
        """Return the bytes of one token, like `llama_token_to_piece`.

        The result is empty for control and unknown tokens unless `special` is set. Raises
        ValueError for an id outside the vocabulary.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            if not 0 <= token_id < self.n_vocab:
                raise ValueError(f"token {token_id} is not in 0..{self.n_vocab - 1}")
            piece = self._pieces[token_id] = self._piece(token_id)
        if not special and self._attrs[token_id] & (CONTROL | UNKNOWN):
            return b""
        return piece

    def token_text(self, token_id: int) -> str:
        """Return a token as written in the vocabulary ("<|im_end|>", "Ġthe")."""
        return self._texts[token_id]

    def token_id(self, text: str) -> int | None:
        """Return the id of the token that is written as `text` in the vocabulary, or None."""
        return self._ids.get(text)

    @cached_property
    def _on_request(self) -> re.Pattern[str]:
        """A pattern that matches all tokens that are parsed only with `parse_special`."""
        kinds = CONTROL | UNKNOWN
        texts = (re.escape(text) for i, text in self._special if self._attrs[i] & kinds)
        return re.compile("|".join(filter(None, texts)) or r"(?!)")

    def may_hold_special(self, text: str) -> bool:
        """Return whether `parse_special` may affect the ids of `text`."""
        return self.special_text_in(text) is not None

    def special_text_in(self, text: str) -> str | None:
        """Return the text of the first control or unknown token in `text`, or None."""
        found = self._on_request.search(text)
        return None if found is None else found[0]

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]:
        """Return the ids of text without special tokens."""

    @abstractmethod
    def _safe_cut(self, text: str, at: int) -> int:
        """Return the first position >= `at` where a split does not change the ids, or the end."""

    @abstractmethod
    def _locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids from `_encode_plain`, int32 [n], and their starts in `text`, int64 [n]."""

    @abstractmethod
    def _normal_piece(self, text: str) -> bytes:
        """Return the bytes of a normal token."""

    def _piece(self, token_id: int) -> bytes:
        text, attr = self._texts[token_id], self._attrs[token_id]
        if attr & (CONTROL | UNKNOWN | USER_DEFINED):
            return text.encode()
        if attr & NORMAL:
            return self._normal_piece(text)
        if attr & BYTE:
            value = byte_value(text)
            assert value is not None
            return bytes([value])
        return b""

    def _with_bos_eos(self, ids: list[int]) -> list[int]:
        bos = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        eos = [self.eos_id] if self.add_eos and self.eos_id is not None else []
        return bos + ids + eos

    def _fragments(
        self, text: str, parse_special: bool
    ) -> Iterator[tuple[int | None, str, int, int]]:
        """Split `text` at special tokens.

        Yields (id or None for plain text, prefix of the plain text, start, end).
        """
        _check_unicode(text)
        prefix = self._prefix
        for start, end, token_id in (self._cuts if parse_special else self._user_cuts).cut(text):
            yield token_id, prefix, start, end
            prefix = "" if token_id is None else self._prefix


def _is_unicode(text: str) -> bool:
    try:
        _check_unicode(text)
    except DataError:
        return False
    return True


def _check_unicode(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(
            f"text is not Unicode: lone surrogate U+{ord(text[e.start]):04X} at character {e.start}"
        ) from None
