"""Byte-level BPE, using Hugging Face's `tokenizers` library.

The tokenizer is built from the tokens and merges in a GGUF file, and from an entry of
`pretokenizers.PRE_TOKENIZERS`.

`tokenizers` and llama.cpp merge in the same way (lowest rank, leftmost on ties), with two
exceptions. First, both drop a byte whose character is not in the vocabulary, but only in llama.cpp
does the dropped byte keep its neighbours from merging. This module gives the byte an id past the
end of the vocabulary and drops the id afterwards. Second, if a merge is listed twice, llama.cpp
uses its first rank; `vocab` therefore removes the second entry.
Source: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe_session`, `llama_decode_text`.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from nbllama.text.tokenizer import Tokenizer
from nbllama.text.vocab import Vocab

if TYPE_CHECKING:
    import tokenizers


def byte_characters() -> dict[int, str]:
    """Return GPT-2's character for each byte: printable Latin-1 unchanged, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


BYTE_CHARACTERS = byte_characters()
_BYTES = {c: b for b, c in BYTE_CHARACTERS.items()}
_ID_SPACE = 1 + max(map(ord, BYTE_CHARACTERS.values()))  # number of ids for unknown bytes
# Every pre-tokenizer splits after a line feed that follows a non-white-space character and precedes
# a letter, and no pattern extends across this position.
_SAFE_CUT = re.compile(r"(?<=\S)\n(?=[A-Za-z])")

# Words with their preceding characters. Every pre-tokenizer splits between an ASCII letter or digit
# and a space or line feed, before a space that follows a non-white-space character and precedes an
# ASCII letter, and at a line feed as above. Text without these positions, such as Chinese, is one
# word.
_WORDS = re.compile(
    r"""
    (?s: . ) [^ \t\r\n]*
    (?: (?<! [A-Za-z0-9] ) (?: (?<= \s ) | (?! [ \n][A-Za-z] ) ) [ \t\r\n] [^ \t\r\n]* )*
    (?: (?<= [^\sA-Za-z0-9] ) \n (?= [A-Za-z] ) )?
    """.replace("[ ", "[\\ "),
    re.VERBOSE,
)
_KEPT = 500_000  # characters in words whose ids are cached


class BpeTokenizer(Tokenizer):
    """A tokenizer for vocabularies with `tokenizer.ggml.model` = "gpt2"."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        assert vocab.pre is not None
        self._pre = vocab.pre
        self._merges = vocab.merges
        self._is_whole = all(c in self._ids for c in BYTE_CHARACTERS.values())
        self._words: dict[str, tuple[int, ...]] = {}  # library ids of words
        self._n_characters = 0  # in these words

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        # Imported on first use, because the import takes 0.1 s and not every command needs it.
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        # Tokens that are not UTF-8 cannot occur in any text.
        ids = {t: i for t, i in self._ids.items() if not any("\ud800" <= c <= "\udfff" for c in t)}
        for c in BYTE_CHARACTERS.values():
            ids.setdefault(c, len(self._texts) + ord(c))
        library = Tokenizer(
            models.BPE(vocab=ids, merges=self._merges, ignore_merges=self._pre.ignore_merges)
        )
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(p), "isolated") for p in self._pre.expressions()]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        return library

    def _encode_plain(self, text: str) -> list[int]:
        return self._known(self._library_ids([text])[0])

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        return [self._known(ids) for ids in self._library_ids(texts)]

    def _library_ids(self, texts: list[str]) -> list[list[int]]:
        """Return the library ids for each text.

        Words are often repeated, and looking them up is much faster than calling the library. Texts
        are therefore split into words, and only new words are passed to the library.
        """
        cut = [_WORDS.findall(text) for text in texts]
        words = self._words
        new = [w for w in dict.fromkeys(chain.from_iterable(cut)) if w not in words]
        if new:
            n_characters = sum(map(len, new))
            if self._n_characters + n_characters > _KEPT:
                words = self._words = {}
                self._n_characters = 0
                new = list(dict.fromkeys(chain.from_iterable(cut)))
                n_characters = sum(map(len, new))
            self._n_characters += n_characters
            # A single call for all words takes less time per word and uses all cores.
            encodings = self._library.encode_batch_fast(new, add_special_tokens=False)
            words.update((word, tuple(e.ids)) for word, e in zip(new, encodings, strict=True))
        return [list(chain.from_iterable(map(words.__getitem__, of))) for of in cut]

    def _known(self, library_ids: list[int]) -> list[int]:
        """Remove the ids past the end of the vocabulary."""
        if self._is_whole:
            return library_ids
        return [i for i in library_ids if i < self.n_vocab]

    def _safe_cut(self, text: str, at: int) -> int:
        found = _SAFE_CUT.search(text, at)
        return found.end() if found else len(text)

    def _locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return self._placed(text, self._library_ids([text])[0])

    @cached_property
    def _n_bytes(self) -> np.ndarray:
        """Number of bytes for each library id, int64."""
        return np.array([len(text) for text in self._texts] + [1] * _ID_SPACE, np.int64)

    def _placed(self, text: str, library_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids in the vocabulary, and the index of each id's first character.

        The library can also return these positions, but that takes longer than tokenising.
        """
        ids = np.array(library_ids, np.int32)
        sizes = self._n_bytes[ids]
        places = np.cumsum(sizes) - sizes
        if not text.isascii():
            first = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
            places = (np.cumsum(first) - 1)[places]
        if len(ids) and ids.max() >= self.n_vocab:
            known = ids < self.n_vocab
            return ids[known], places[known]
        return ids, places

    def _normal_piece(self, text: str) -> bytes:
        """Return the bytes that the characters of a token represent.

        As in llama.cpp, a character that represents no byte is written as [UNK_BYTE_0x...].
        """
        out = bytearray()
        for c in text:
            byte = _BYTES.get(c)
            if byte is not None:
                out.append(byte)
            else:
                raw = ("\ufffd" if "\ud800" <= c <= "\udfff" else c).encode()
                out += b"[UNK_BYTE_0x" + raw.hex().encode()
                out += text.encode("utf-8", "surrogateescape") + b"]"
        return bytes(out)
