"""The batches that the trainer receives from a data set: concatenated sequences, never padded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from nbllama.data.order import Shuffled

NOT_TRAINED = -1


@dataclass(frozen=True)
class Tree:
    """Which rows belong to which samples, in a batch whose samples share beginnings.

    `nbllama.data.shared` creates it. All arrays are C-contiguous int32. N computed rows in S
    sequences, n tokens of the samples, P keys.

    samples            the same samples, each complete
    rows [n]           the row of each of their tokens
    paths [P]          sequence s attends to rows `k_offsets[s] : k_offsets[s + 1]` of this;
    k_offsets [S+1]    the last of these are the sequence's own rows
    order [P]          where each row is in `paths`: row r at `starts[r] : starts[r + 1]` of this,
    starts [N+1]       in ascending order
    """

    samples: Batch
    rows: np.ndarray
    paths: np.ndarray
    k_offsets: np.ndarray
    order: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Batch:
    """A stream of N tokens in S sequences; all arrays are C-contiguous int32.

    tokens [N]         input ids
    targets [N]        the id that should follow each token, or `NOT_TRAINED` (-1)
    positions [N]      0, 1, 2, ... starting again with every sequence
    seq_offsets [S+1]  sequence s is `seq_offsets[s] : seq_offsets[s + 1]`; the last one is N

    With a `tree`, a sequence is the part of a sample that it does not share with an earlier one.
    Its positions continue after the shared part, and targets [n] belong to the tokens of
    `tree.samples`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    seq_offsets: np.ndarray
    tree: Tree | None = None

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Batch:
        """Join `rows` into a stream, each (tokens [n], targets [n]) of one sequence, n >= 1.

        Raises `ValueError` for no rows, an empty row, or tokens and targets of different lengths.
        """
        tokens, targets = [], []
        for row_tokens, row_targets in rows:
            if not 1 <= len(row_tokens) == len(row_targets):
                raise ValueError(
                    f"a row has {len(row_tokens)} tokens, but {len(row_targets)} targets"
                )
            tokens.append(row_tokens)
            targets.append(row_targets)
        if not tokens:
            raise ValueError("a batch needs at least one row")
        return cls(
            np.concatenate(tokens, dtype=np.int32, casting="same_kind"),
            np.concatenate(targets, dtype=np.int32, casting="same_kind"),
            np.concatenate([np.arange(len(t), dtype=np.int32) for t in tokens]),
            np.cumsum([0] + [len(t) for t in tokens], dtype=np.int32),
        )

    @property
    def n_tokens(self) -> int:
        """Number of input tokens of all sequences that are computed."""
        return len(self.tokens)

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return len(self.seq_offsets) - 1

    @property
    def n_trained(self) -> int:
        """Number of targets that count in the loss."""
        return int(np.count_nonzero(self.targets != NOT_TRAINED))

    def whole(self) -> Batch:
        """Return the complete samples: the batch itself unless it has a tree."""
        return self if self.tree is None else self.tree.samples

    def trained(self) -> tuple[np.ndarray, np.ndarray]:
        """Return row and target of each position that counts in the loss, in order, `[M]` each."""
        at = np.flatnonzero(self.targets != NOT_TRAINED)
        return at if self.tree is None else self.tree.rows[at], self.targets[at]


class Dataset(Protocol):
    """Samples by number; `batch` is a pure function of the numbers."""

    @property
    def kind(self) -> str:
        """The kind of data: "raw" or "chat" (records of any format)."""
        ...

    @property
    def n_samples(self) -> int:
        """Number of samples, at least 1."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of all samples.

        The fingerprint changes with any edit that changes a token, and with the tokenizer, template
        and n_ctx, but not with the file's name.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about what was truncated or left out; often empty."""
        ...

    def n_tokens(self, i: int) -> int:
        """Return the length of sample i's sequence."""
        ...

    def n_trained(self, i: int) -> int:
        """Return the number of sample i's targets that count in the loss; at least 1."""
        ...

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """`n_tokens` and `n_trained` of all samples, int64 [n_samples] each."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the samples with these numbers, in this order; `IndexError` if out of range."""
        ...

    def take(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> tuple[Batch, int]:
        """Return at most `n_rows` rows, beginning at position `first` of an epoch's order.

        Also returns the number of samples in them. `wraps`: continue at the order's start after
        its end, so that the batch is full.
        """
        ...

    def used(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return how many samples `take` would put into the batch."""
        ...

    def largest(self, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return upper bounds on the tokens and the trained targets of any batch from `take`."""
        ...

    def per_batch(self, n_rows: int) -> float:
        """Return the average number of samples in a batch, not counting an epoch's last batch."""
        ...


def largest_rows(
    lengths: tuple[np.ndarray, np.ndarray], n_rows: int, wraps: bool
) -> tuple[int, int]:
    """Return `Dataset.largest` for a data set with one sample per row: the sum of the longest rows.

    `wraps`: the same sample can occur more than once.
    """
    if wraps:
        tokens, trained = (n_rows * int(counts.max()) for counts in lengths)
    else:
        tokens, trained = (int(np.sort(counts)[-n_rows:].sum()) for counts in lengths)
    return tokens, trained


class RowPerSample:
    """The remaining methods of a `Dataset` in which every sample is one row."""

    def lengths(self: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the length of each sample, as `Dataset.lengths` does."""
        every = range(self.n_samples)
        counts = ([of(i) for i in every] for of in (self.n_tokens, self.n_trained))
        tokens, trained = (np.array(c, np.int64) for c in counts)
        return tokens, trained

    def take(
        self: Any, order: Shuffled, first: int, n_rows: int, *, wraps: bool
    ) -> tuple[Batch, int]:
        """Return the next `n_rows` samples of the order, each as a row."""
        places = np.arange(first, first + n_rows)
        places = places % self.n_samples if wraps else places[places < self.n_samples]
        return self.batch(order.order[places].tolist()), len(places)

    def used(self: Any, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return `n_rows`, or the number of samples left in an order that does not wrap."""
        return n_rows if wraps else min(n_rows, int(self.n_samples) - first)

    def largest(self: Any, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return the bounds from `largest_rows`."""
        return largest_rows(self.lengths(), n_rows, wraps)

    def per_batch(self, n_rows: int) -> float:
        """Return `n_rows`: one sample is one row."""
        return n_rows
