"""Raw text: one file, tokenised in one go, cut into windows of at most n_ctx tokens.

A sample is a window (begin, size) of the file's tokens t. Its sequence is

    tokens   BOS       t[begin]     ...  t[begin + size - 2]
    targets  t[begin]  t[begin + 1] ...  t[begin + size - 1]

as in llama.cpp's `common/train.cpp:get_example_targets_batch`. A window shorter than n_ctx gives
a shorter sequence. (The old tool padded it with EOS and trained on the padding.)

A cutter decides which windows there are; further ways of cutting are further cutters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.text_file import decode_utf8, read_bytes, sha256_parts
from nbllama.errors import DataError, shown

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class Windows(NamedTuple):
    """Where samples lie in the tokens: begins int64 [n], sizes int64 [n] (each >= 1)."""

    begins: np.ndarray
    sizes: np.ndarray


class Cut(NamedTuple):
    """What a cutter returns: the file's token ids, int32 [T], and the windows in them."""

    tokens: np.ndarray
    windows: Windows


# (text, tokenizer, n_ctx) -> Cut. A cutter sees the text because some tokenise piece by piece.
Cutter = Callable[[str, "Tokenizer", int], Cut]


def every_token(text: str, tokenizer: Tokenizer, n_ctx: int) -> Cut:
    """The old tool's cutting without `--sample-start`: a sample begins at every token.

    The text is tokenised whole, without BOS; special tokens in it are plain text. With n tokens
    there are max(1, n - n_ctx) samples: (0, min(n_ctx, n)), then (i, n_ctx) for i = 1 ..
    n - n_ctx - 1. The window that ends with the last token is not among them, as in
    `common/train.cpp:tokenize_file`.
    """
    parts = [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_parts(text)]
    tokens = np.concatenate([np.empty(0, dtype=np.int32), *parts])
    n_samples = max(1, len(tokens) - n_ctx)
    size = min(n_ctx, len(tokens))
    return Cut(
        tokens,
        Windows(np.arange(n_samples), np.broadcast_to(np.int64(size), (n_samples,))),
    )


def first_token(tokenizer: Tokenizer) -> int:
    """The id that every sequence of raw text begins with: BOS, else EOS.

    A vocabulary without BOS (GPT-2's kind) has one end-of-text token that stands between
    documents, so it precedes the start of a text just as BOS does; where llama.cpp names a BOS
    for such a model, it is that same token.

    Raises `DataError` for a vocabulary with neither.
    """
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise DataError("the model has neither a BOS nor an EOS token to begin raw text with")


@dataclass(frozen=True)
class RawText:
    """The `Dataset` of a text file.

    tokens int32 [T] are the file's ids, `first` the id put before each window.
    """

    tokens: np.ndarray
    windows: Windows
    first: int
    fingerprint: str
    notes: tuple[str, ...] = ()
    kind: str = "raw"

    @property
    def n_samples(self) -> int:
        return len(self.windows.begins)

    def n_tokens(self, i: int) -> int:
        return int(self.windows.sizes[self._checked(i)])

    def n_trained(self, i: int) -> int:
        """All of a window is trained: its size."""
        return self.n_tokens(i)

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch.from_rows(self._row(self._checked(i)) for i in indices)

    def _row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        begin = self.windows.begins[i]
        targets = self.tokens[begin : begin + self.windows.sizes[i]]
        return np.concatenate(([np.int32(self.first)], targets[:-1])), targets

    def _checked(self, i: int) -> int:
        if not 0 <= i < self.n_samples:
            raise IndexError(f"sample {i} of {self.n_samples}")
        return i


def load_raw_text(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    n_ctx: int,
    *,
    cutter: Cutter = every_token,
    content: bytes | None = None,
) -> RawText:
    """The samples of a UTF-8 text file, at most `n_ctx` tokens each.

    `content`: the file's bytes, if they were read already.
    Raises `DataError` for a file that cannot be read, is empty or is not UTF-8.
    """
    if n_ctx < 1:
        raise ValueError("n_ctx must be at least 1")
    content = read_bytes(path) if content is None else content
    cut = cutter(decode_utf8(content, path), tokenizer, n_ctx)
    if len(cut.tokens) == 0:
        raise DataError(f"training data {shown(os.fspath(path))} is empty: it holds no token")
    first = first_token(tokenizer)
    longest = int(cut.windows.sizes.max())
    notes: tuple[str, ...] = ()
    if len(cut.windows.sizes) == 1 and longest < n_ctx:
        notes = (f"the text has only {longest} tokens; one sample of that length is trained on",)
    return RawText(
        cut.tokens,
        cut.windows,
        first,
        _fingerprint(cut, n_ctx, first),
        notes,
    )


def _fingerprint(cut: Cut, n_ctx: int, first: int) -> str:
    begins, sizes = cut.windows
    return sha256_parts(
        "raw", n_ctx, first, cut.tokens.tobytes(), begins.tobytes(), sizes.tobytes()
    )
