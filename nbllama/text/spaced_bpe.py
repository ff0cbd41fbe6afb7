r"""BPE over whole lines, with spaces written as U+2581 (`tokenizer.ggml.model` = "gemma4").

Text is split into runs of line feeds and the text between them. A run of line feeds that is itself
a token is not merged. Everything else is merged by rank, as in byte-level BPE, but in terms of
characters instead of bytes. A character without a token is represented by tokens for its UTF-8
bytes, `<0x00>` to `<0xFF>`. Source: llama.cpp, src/llama-vocab.cpp, `llm_tokenizer_bpe_session`
(LLAMA_VOCAB_PRE_TYPE_GEMMA4).
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nbllama.text.spm import BYTE_TEXTS, SPACE
from nbllama.text.tokenizer import Tokenizer
from nbllama.text.vocab import Vocab

if TYPE_CHECKING:
    import tokenizers

_RUNS = re.compile(r"[^\n]+|\n+")
_SAFE_CUT = re.compile(r"\n(?=[^\n])")


class SpacedBpeTokenizer(Tokenizer):
    """A tokenizer for vocabularies with `tokenizer.ggml.model` = "gemma4"."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self._merges = vocab.merges

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        # Imported on first use, because commands that process no text do not need it.
        from tokenizers import Tokenizer, models

        # Tokens that are not UTF-8 cannot occur in any text.
        ids = {t: i for t, i in self._ids.items() if not any("\ud800" <= c <= "\udfff" for c in t)}
        return Tokenizer(models.BPE(vocab=ids, merges=self._merges, byte_fallback=True))

    def _encode_plain(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        cut = [_RUNS.findall(text.replace(" ", SPACE)) for text in texts]
        runs = dict.fromkeys(run for of in cut for run in of)
        known: dict[str, list[int]] = {}
        for run in runs:
            if run[0] == "\n" and (token := self._ids.get(run)) is not None:
                known[run] = [token]
        new = [run for run in runs if run not in known]
        encodings = self._library.encode_batch_fast(new, add_special_tokens=False)
        known |= {run: e.ids for run, e in zip(new, encodings, strict=True)}
        return [[i for run in of for i in known[run]] for of in cut]

    def _safe_cut(self, text: str, at: int) -> int:
        found = _SAFE_CUT.search(text, max(at - 1, 0))
        return found.end() if found else len(text)

    def _locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, text = self._encode_plain(text), text.replace(" ", SPACE)
        starts, at, spelled = [], 0, 0  # `spelled` counts bytes of the character at `at`
        for i in ids:
            starts.append(at)
            token = self._texts[i]
            if token not in BYTE_TEXTS or text.startswith(token, at):
                at += len(token)
                continue
            spelled += 1
            if spelled == len(text[at].encode()):
                at, spelled = at + 1, 0
        return np.array(ids, np.int32), np.array(starts, np.int64)

    def _normal_piece(self, text: str) -> bytes:
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
