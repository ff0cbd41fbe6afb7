"""Raw text, tokenised and split into samples for rows of at most n_ctx tokens.

A sample is a window (begin, size) in t, the tokens of a file. The row for a sample, or for the
beginning of a long sample, is the sequence

    tokens   BOS       t[begin]     ...  t[begin + n - 2]
    targets  t[begin]  t[begin + 1] ...  t[begin + n - 1]        n = min(size, n_ctx)

as in llama.cpp's `common/train.cpp:get_example_targets_batch`. `Rules` specify what happens to a
row that is not full. A cutter (`nbllama.data.cutters`) chooses the windows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.batch import Batch, largest_rows
from nbllama.data.cutters import Cut, Cutter, Windows, every_token
from nbllama.data.order import Shuffled
from nbllama.data.text_file import decode_text, decode_utf8, read_bytes, sha256_parts
from nbllama.errors import DataError, shown

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


class Rules(NamedTuple):
    """The rules for building rows; the names match the options.

    `pad` fills short rows with EOS tokens, which are trained on, as in the old tool. Without `pad`,
    short rows stay short.
    """

    fill_with_next_samples: bool = False
    separate_with_eos: bool = False
    separate_with_bos: bool = True
    sample_random_offsets: bool = False
    pad: bool = False


def first_token(tokenizer: Tokenizer) -> int:
    """Return the id that begins every sequence of raw text: BOS, else EOS.

    A vocabulary without BOS, such as GPT-2's, has an end-of-text token between documents, which
    precedes the start of a text just as BOS does. If llama.cpp reports a BOS for such a model, it
    is the same token.

    Raises `DataError` if the vocabulary has neither.
    """
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise DataError("the model has neither a BOS nor an EOS token to begin raw text with")


@dataclass(frozen=True)
class RawText:
    """A `Dataset` for a text file.

    `tokens` contains the token ids of the file, int32 [T]. `first` is the id that begins each row.
    `last` is the id that ends a sample, if the rules require one, and that replaces an empty
    sample.
    """

    tokens: np.ndarray
    windows: Windows
    n_ctx: int
    first: int
    last: int
    fingerprint: str
    rules: Rules = field(default_factory=Rules)
    notes: tuple[str, ...] = ()
    kind: str = "raw"

    @property
    def n_samples(self) -> int:
        """Number of windows."""
        return len(self.windows.begins)

    @property
    def full_rows(self) -> bool:
        """Whether all rows have n_ctx tokens, except for the last row of an epoch."""
        return self.rules.pad or self.rules.fill_with_next_samples

    def n_tokens(self, i: int) -> int:
        """Return the length of the row starting with sample i."""
        size = int(self.windows.sizes[self._checked(i)])
        return self.n_ctx if self.full_rows else max(1, min(size, self.n_ctx))

    def n_trained(self, i: int) -> int:
        """Return the length of the row, because every target is trained on."""
        return self.n_tokens(i)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths twice (tokens and targets), because every target is trained on."""
        low = self.n_ctx if self.full_rows else 1
        counts = np.clip(self.windows.sizes, low, self.n_ctx)
        return counts, counts

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return a batch of the samples with these indices, one row per sample."""
        order = Shuffled(np.array([self._checked(i) for i in indices]), np.zeros(len(indices)))
        rows = [self._row(order, at, at + 1, wraps=False)[0] for at in range(len(indices))]
        return Batch.from_rows(self._with_input(targets) for targets in rows)

    def take(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> tuple[Batch, int]:
        """Return at most `n_rows` rows, from position `first` onwards.

        Depending on `Rules`, short rows are filled with further samples.
        """
        at = first
        rows: list[np.ndarray] = []
        while len(rows) < n_rows and (wraps or at < self.n_samples):
            targets, used = self._row(order, at, self.n_samples, wraps=wraps)
            rows.append(targets)
            at += used
        return Batch.from_rows(self._with_input(targets) for targets in rows), at - first

    def used(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return how many samples `take` uses: one per row, or as many as are needed to fill it."""
        if self.rules.fill_with_next_samples:
            return self.take(order, first, n_rows, wraps=wraps)[1]
        return n_rows if wraps else min(n_rows, self.n_samples - first)

    def largest(self, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return the bounds from `largest_rows`."""
        return largest_rows(self.lengths(), n_rows, wraps)

    def per_batch(self, n_rows: int) -> float:
        """Return `n_rows`, because each row begins with one sample."""
        return n_rows

    def _with_input(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(([np.int32(self.first)], targets[:-1])), targets

    def _row(self, order: Shuffled, first: int, end: int, *, wraps: bool) -> tuple[np.ndarray, int]:
        """Return the targets of a row, int32, and the number of samples in the row.

        The row starts with the sample at position `first` in the order. Positions from `end`
        onwards do not exist unless the order `wraps`.
        """
        rules, room = self.rules, self.n_ctx
        parts: list[np.ndarray] = []
        place = first % len(order.order)
        begin, size = self._window(order, place)
        # An empty sample has no offset, because the product is 0.
        at = int(max(0, size - 1) * order.unit[place]) if rules.sample_random_offsets else 0
        used, separators = 1, self._separators()
        while room:
            if at < size:
                part = self.tokens[begin + at : begin + min(size, at + room)]
                at += len(part)
            elif rules.fill_with_next_samples and (wraps or first + used < end):
                if separators:
                    part = np.array([separators.pop(0)], np.int32)
                else:
                    begin, size = self._window(order, (first + used) % len(order.order))
                    at, separators = 0, self._separators()
                    used += 1
                    part = np.array([] if size else [self.last], np.int32)
            elif rules.pad:
                part = np.full(room, self.last, np.int32)
            elif not parts:
                part = np.array([self.last], np.int32)
            else:
                break
            parts.append(part)
            room -= len(part)
        return np.concatenate(parts), used

    def _window(self, order: Shuffled, place: int) -> tuple[int, int]:
        i = order.order[place]
        return int(self.windows.begins[i]), int(self.windows.sizes[i])

    def _separators(self) -> list[int]:
        eos = [self.last] if self.rules.separate_with_eos else []
        return eos + ([self.first] if self.rules.separate_with_bos else [])

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
    rules: Rules | None = None,
    content: bytes | None = None,
    text: str | None = None,
    texts: Sequence[str] = (),
    keep_mark: bool = False,
) -> RawText:
    """Load the samples of a text file, for rows of at most `n_ctx` tokens.

    If the file has already been read, pass its contents as `content` (UTF-8) or `text`. `texts`
    contains the texts of several files, which are split separately so that no sample crosses from
    one file into the next. With `keep_mark`, a leading byte-order mark is part of the text. Raises
    `DataError` if the file cannot be read, is empty or is not text.
    """
    if n_ctx < 1:
        raise ValueError("n_ctx must be at least 1")
    rules = rules or Rules()
    if text is None and (keep_mark or content is not None):
        given = read_bytes(path) if content is None else content
        text = decode_utf8(given, path, keep_mark=keep_mark)
    if text is None:
        text = decode_text(read_bytes(path), path)
    cut = _joined([cutter(t, tokenizer, n_ctx) for t in texts or (text,)])
    if len(cut.tokens) == 0:
        raise DataError(f"training data {shown(os.fspath(path))} is empty: it contains no tokens")
    first = first_token(tokenizer)
    last = first if tokenizer.eos_id is None else tokenizer.eos_id
    return RawText(
        cut.tokens,
        cut.windows,
        n_ctx,
        first,
        last,
        _fingerprint(cut, n_ctx, first, rules),
        rules,
        cut.notes,
    )


def _joined(cuts: Sequence[Cut]) -> Cut:
    """Concatenate the tokens of several texts, and combine their windows."""
    if len(cuts) == 1:
        return cuts[0]
    firsts = np.cumsum([0] + [len(cut.tokens) for cut in cuts[:-1]], dtype=np.int64)
    begins = [cut.windows.begins + first for cut, first in zip(cuts, firsts, strict=True)]
    notes = Counter(note for cut in cuts for note in cut.notes)
    return Cut(
        np.concatenate([cut.tokens for cut in cuts]),
        Windows(np.concatenate(begins), np.concatenate([cut.windows.sizes for cut in cuts])),
        tuple(f"{n} of {len(cuts)} texts: {note}" for note, n in notes.items()),
    )


def _fingerprint(cut: Cut, n_ctx: int, first: int, rules: Rules) -> str:
    begins, sizes = cut.windows
    more = () if rules == Rules() else tuple(int(r) for r in rules)
    return sha256_parts(
        "raw", n_ctx, first, cut.tokens.tobytes(), begins.tobytes(), sizes.tobytes(), *more
    )
