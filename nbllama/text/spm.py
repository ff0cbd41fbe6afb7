"""SentencePiece tokenizers (`tokenizer.ggml.model` = "llama"), using the `sentencepiece` library.

The library loads a ModelProto built from the tokens and scores in the GGUF file, with BPE, byte
fallback and the identity normaliser; this module escapes the spaces. The library merges like
llama.cpp (best score, leftmost on ties), but distinguishes kinds of tokens, whereas llama.cpp
merges all kinds in the same way. Every token is therefore declared as a normal piece, except for

- the 256 byte tokens, which must have type BYTE and are therefore never merged;
- an additional unknown token, after the tokens of the vocabulary.

If merges could produce the text of a byte token, such as "<0x0A>" from "<0x0A" and ">",
`merge_pieces` is used instead, which follows llama.cpp's rules but is about 15 times slower.
Source: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_spm_session`, `llama_vocab::byte_to_token`.
"""

from __future__ import annotations

import heapq
import struct
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nbllama.errors import GGUFError, shown
from nbllama.text.tokenizer import Tokenizer
from nbllama.text.vocab import Vocab

if TYPE_CHECKING:
    import sentencepiece

SPACE = "\u2581"
BYTE_TEXTS = {f"<0x{b:02X}>": b for b in range(256)}
_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6  # ModelProto.SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType


class SpmTokenizer(Tokenizer):
    """A tokenizer for vocabularies with `tokenizer.ggml.model` = "llama"."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        assert vocab.scores is not None
        self._scores: list[float] = vocab.scores.tolist()
        self._prefix = " " if self.add_space_prefix else ""

    @cached_property
    def _library(self) -> sentencepiece.SentencePieceProcessor | None:
        """The library model, or None if it would merge differently from llama.cpp."""
        if any(
            byte[:i] in self._ids and byte[i:] in self._ids
            for byte in BYTE_TEXTS
            if byte in self._ids
            for i in range(1, len(byte))
        ):
            return None
        from sentencepiece import SentencePieceProcessor

        library = SentencePieceProcessor()
        library.LoadFromSerializedProto(model_proto(self._texts, self._scores))
        return library

    def _encode_plain(self, text: str) -> list[int]:
        text = text.replace(" ", SPACE)
        if self._library is None:
            pieces = merge_pieces(text, self._ids, self._scores)
            ids = [i for piece in pieces for i in self._spell(piece)]
        else:
            ids = self._library.EncodeAsIds(text)
        for i in ids:
            if i >= self.n_vocab:
                raise GGUFError(
                    f"{shown(self.path, 400)}: tokenizer.ggml.tokens: '{shown(text, 40)}' contains "
                    "a character that has no token, and the byte token "
                    f"<0x{i - self.n_vocab - 1:02X}> is missing"
                )
        return ids

    @cached_property
    def _inner_pairs(self) -> set[str]:
        """The pairs of characters that are adjacent in at least one token."""
        return {a + b for text in self._texts for a, b in pairwise(text)}

    def _safe_cut(self, text: str, at: int) -> int:
        # Merges never join two characters that are not adjacent in any token.
        for i in range(max(at, 1), len(text)):
            if text[i - 1 : i + 1].replace(" ", SPACE) not in self._inner_pairs:
                return i
        return len(text)

    def _locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._encode_plain(text)
        text = text.replace(" ", SPACE)
        starts, at, spelled = [], 0, 0  # `spelled` counts bytes of the character at `at`
        for i in ids:
            starts.append(at)
            token = self._texts[i]
            is_byte = token in BYTE_TEXTS and (
                self._library is not None or not text.startswith(token, at)
            )
            if not is_byte:
                at += len(token)
            else:
                spelled += 1
                if spelled == len(text[at].encode()):
                    at, spelled = at + 1, 0
        return np.array(ids, np.int32), np.array(starts, np.int64)

    def _spell(self, piece: str) -> list[int]:
        """Return the id of `piece`, or the ids of its bytes if it is not a token."""
        token_id = self._ids.get(piece)
        if token_id is not None:
            return [token_id]
        return [self._ids.get(f"<0x{b:02X}>", self.n_vocab + 1 + b) for b in piece.encode()]

    def _normal_piece(self, text: str) -> bytes:
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")


def merge_pieces(text: str, ids: dict[str, int], scores: list[float]) -> list[str]:
    """Merge `text` into the tokens in `ids`.

    Each step merges the adjacent pair whose combined text has the best score, choosing the leftmost
    on ties. Unmerged characters remain separate pieces, even if they are not in `ids`.
    """
    pieces: list[str] = list(text)  # "" once merged into the left neighbour
    left = list(range(-1, len(pieces) - 1))
    right = [*range(1, len(pieces)), -1]
    heap: list[tuple[float, int, int, int]] = []

    def offer(i: int, j: int) -> None:
        if i >= 0 and j >= 0:
            token_id = ids.get(pieces[i] + pieces[j])
            if token_id is not None:
                size = len(pieces[i]) + len(pieces[j])
                heapq.heappush(heap, (-scores[token_id], i, j, size))

    for i in range(len(pieces) - 1):
        offer(i, i + 1)
    while heap:
        _, i, j, size = heapq.heappop(heap)
        if not pieces[i] or not pieces[j] or len(pieces[i]) + len(pieces[j]) != size:
            continue  # one of the pair has changed in the meantime
        pieces[i] += pieces[j]
        pieces[j] = ""
        right[i] = right[j]
        if right[j] >= 0:
            left[right[j]] = i
        offer(left[i], i)
        offer(i, right[i])
    return [p for p in pieces if p]


def model_proto(texts: list[str], scores: list[float]) -> bytes:
    """Return a serialised `sentencepiece.ModelProto` whose ids are the indices of `texts`.

    Id len(texts) is an additional unknown token. If `texts` contains no token for byte b, id
    len(texts) + 1 + b is a token for it. Source of the field numbers: sentencepiece,
    src/sentencepiece_model.proto.
    """
    out = bytearray()
    known = set(texts)
    for i, (text, score) in enumerate(zip(texts, scores, strict=True)):
        kind = _BYTE if text in BYTE_TEXTS else _NORMAL
        if any(c == " " or "\ud800" <= c <= "\udfff" for c in text):
            text = f" {i}"  # never matches, because the input is UTF-8 without spaces
        out += _piece(text, score, kind)
    out += _piece(" unknown", 0.0, _UNKNOWN)
    for text in BYTE_TEXTS:
        if text in known:
            out += _piece(f" {text}", 0.0, _NORMAL)
        else:
            out += _piece(text, 0.0, _BYTE)
    trainer = _field(3, _BPE) + _field(35, 1) + _field(45, b" unknown")
    normalizer = _field(1, b"identity") + _field(3, 0) + _field(4, 0) + _field(5, 0)
    return bytes(out + _field(2, trainer) + _field(3, normalizer))


def _piece(text: str, score: float, kind: int) -> bytes:
    score_field = b"\x15" + struct.pack("<f", score)
    return _field(1, _field(1, text.encode()) + score_field + _field(3, kind))


def _field(number: int, value: int | bytes) -> bytes:
    """Encode a protobuf field: a varint, or bytes prefixed with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)
