"""Choose where samples of raw text begin: at every token, or at each occurrence of a string.

A cutter is called with (text, tokenizer, n_ctx) and returns a `Cut`. It receives text instead of
tokens because some cutters tokenise each sample separately. Source: llama.cpp
`common/train.cpp:tokenize_file`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.errors import counted

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class Windows(NamedTuple):
    """The starts and sizes of the samples, in tokens, int64 [n]; empty samples have size 0."""

    begins: np.ndarray
    sizes: np.ndarray


class Cut(NamedTuple):
    """The result of a cutter.

    It contains the token ids of the file, int32 [T], the windows, and messages to the user.
    """

    tokens: np.ndarray
    windows: Windows
    notes: tuple[str, ...] = ()


Cutter = Callable[[str, "Tokenizer", int], Cut]


def every_token(text: str, tokenizer: Tokenizer, n_ctx: int) -> Cut:
    """Begin a sample at every token, like the old tool without `--sample-start`.

    The whole text is tokenised without BOS, and special tokens are treated as plain text. A text of
    n tokens gives max(1, n - n_ctx) samples. Their starts and sizes are (0, min(n_ctx, n)), then
    (i, n_ctx) for i = 1 .. n - n_ctx - 1. The window that ends with the last token is not used.
    """
    parts = [np.array(ids, dtype=np.int32) for ids in tokenizer.encode_parts(text)]
    tokens = np.concatenate([np.empty(0, dtype=np.int32), *parts])
    n_samples = max(1, len(tokens) - n_ctx)
    size = min(n_ctx, len(tokens))
    windows = Windows(np.arange(n_samples), np.broadcast_to(np.int64(size), (n_samples,)))
    notes: tuple[str, ...] = ()
    if 0 < size < n_ctx:
        notes = (f"the text has only {size} tokens, so it is trained on as a single sample",)
    return Cut(tokens, windows, notes)


@dataclass(frozen=True)
class SampleStart:
    """A cutter that begins a sample after each (non-overlapping) occurrence of `start`.

    Each sample is tokenised separately. Text before the first occurrence is not used. A sample ends
    at the next occurrence of `start`, so it can be empty. With `overlapping`, a sample instead has
    n_ctx times as many bytes as the longest token, rounded up to a whole character.

    With `include`, samples begin with `start` instead of after it. Text without `start` becomes a
    single sample. With `old` (and without `include`), this sample skips as many bytes of the
    text as `start` has, as in the old tool.
    """

    start: str
    include: bool = False
    overlapping: bool = False
    old: bool = False

    def __call__(self, text: str, tokenizer: Tokenizer, n_ctx: int) -> Cut:
        """Return the samples of `text`."""
        content, mark = text.encode(), self.start.encode()
        notes = []
        opened = _occurrences(content, mark)
        skipped = 0 if self.include else len(mark)
        if not opened:
            notes.append(
                f"--sample-start {self.start!r} does not occur in the text, which becomes a "
                "single sample"
            )
            opened = [0]
            skipped = skipped if self.old else 0
        begins = [min(place + skipped, len(content)) for place in opened]
        if self.overlapping:
            reach = _longest_token(tokenizer) * n_ctx
            ends = [min(begin + reach, len(content)) for begin in begins]
        else:
            ends = [*opened[1:], len(content)]
        pieces = []
        for begin, end in zip(begins, ends, strict=True):
            part = content[_whole(content, begin) : _whole(content, max(begin, end))]
            pieces.append(np.array(tokenizer.encode(part.decode()), np.int32))
        sizes = np.array([len(p) for p in pieces], np.int64)
        places = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        notes += _about(sizes, n_ctx)
        return Cut(np.concatenate(pieces), Windows(places, sizes), tuple(notes))


def _occurrences(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + len(mark))
    return found


def _longest_token(tokenizer: Tokenizer) -> int:
    """Return the length in bytes of the longest token, as written in the vocabulary."""
    texts = (tokenizer.token_text(i) for i in range(tokenizer.n_vocab))
    return max(len(text.encode("utf-8", "surrogateescape")) for text in texts)


def _whole(content: bytes, place: int) -> int:
    """Return the first position from `place` onwards that is not inside a UTF-8 character."""
    while place < len(content) and content[place] & 0xC0 == 0x80:
        place += 1
    return place


def _about(sizes: np.ndarray, n_ctx: int) -> list[str]:
    """Return messages to the user about samples that do not exactly fill one row."""
    notes = []
    empty, longer = int((sizes == 0).sum()), sizes[sizes > n_ctx]
    shorter = sizes[sizes < n_ctx]
    if empty:
        samples = counted(empty, "sample is", "samples are")
        notes.append(f"{samples} empty; each becomes a single EOS token")
    if len(longer):
        notes.append(
            f"{counted(len(longer), 'sample is', 'samples are')} truncated to the context of "
            f"{n_ctx} tokens (longest: {counted(int(longer.max()), 'token')})"
        )
    if len(shorter):
        notes.append(
            f"{counted(len(shorter), 'sample is', 'samples are')} shorter than the context of "
            f"{n_ctx} tokens (shortest: {counted(int(shorter.min()), 'token')})"
        )
    return notes
