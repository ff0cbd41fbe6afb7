"""The batches that a data set gives to the trainer: concatenated sequences without padding."""

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
    """The mapping from samples to rows in a batch of samples with common prefixes.

    It is created by `nbllama.data.shared`. All arrays are C-contiguous int32. The batch contains N
    computed rows in S sequences, n sample tokens, and P keys.

    samples            the batch without sharing, in which every sample is complete
    rows [n]           the row of each sample token
    paths [P]          the rows that each sequence attends to, ending with its own rows
    k_offsets [S+1]    sequence s attends to `paths[k_offsets[s] : k_offsets[s + 1]]`
    order [P]          indices into `paths`, grouped by row and ascending within each group
    starts [N+1]       the indices for row r are `order[starts[r] : starts[r + 1]]`
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
    positions [N]      0, 1, 2, ..., restarting at 0 in every sequence
    seq_offsets [S+1]  sequence s is `seq_offsets[s] : seq_offsets[s + 1]`; the last offset is N

    With a `tree`, a sequence is the part of a sample that is not shared with an earlier sample. Its
    positions continue after the shared part, and targets [n] belong to the tokens of
    `tree.samples`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    seq_offsets: np.ndarray
    tree: Tree | None = None

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Batch:
        """Concatenate `rows`, which contains a tuple (tokens [n], targets [n]) per sequence.

        Raises `ValueError` if there are no rows, a row is empty, or tokens and targets differ in
        length.
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
        """Number of computed input tokens in all sequences."""
        return len(self.tokens)

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return len(self.seq_offsets) - 1

    @property
    def n_trained(self) -> int:
        """Number of targets that contribute to the loss."""
        return int(np.count_nonzero(self.targets != NOT_TRAINED))

    def whole(self) -> Batch:
        """Return a batch of the complete samples: the batch itself unless it has a tree."""
        return self if self.tree is None else self.tree.samples

    def trained(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and targets of the positions that contribute to the loss, both `[M]`."""
        at = np.flatnonzero(self.targets != NOT_TRAINED)
        return at if self.tree is None else self.tree.rows[at], self.targets[at]


class Dataset(Protocol):
    """A collection of samples, addressed by index; `batch` depends only on the indices."""

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

        The fingerprint depends on every token, the tokenizer, the template and n_ctx, but not on
        the file name.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages to the user about what was truncated or left out, if anything."""
        ...

    def n_tokens(self, i: int) -> int:
        """Return the sequence length of sample i."""
        ...

    def n_trained(self, i: int) -> int:
        """Return the number of targets of sample i that contribute to the loss, at least 1."""
        ...

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `n_tokens` and `n_trained` of all samples, int64 [n_samples] each."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return a batch of the samples with these indices, in this order.

        Raises `IndexError` if an index is out of range.
        """
        ...

    def take(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> tuple[Batch, int]:
        """Return at most `n_rows` rows, starting at position `first` in the order of an epoch.

        Also returns the number of samples in these rows. If `wraps` is set, the batch is always
        full: after the end of the order, it continues from the start.
        """
        ...

    def used(self, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return how many samples `take` would use."""
        ...

    def largest(self, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return upper bounds on the token and trained target counts of any batch from `take`."""
        ...

    def per_batch(self, n_rows: int) -> float:
        """Return the average number of samples per batch, excluding the last batch of an epoch."""
        ...


def largest_rows(
    lengths: tuple[np.ndarray, np.ndarray], n_rows: int, wraps: bool
) -> tuple[int, int]:
    """Return the upper bounds for `Dataset.largest`, assuming that every row is one sample.

    Each bound is the sum of the `n_rows` largest counts. If `wraps` is set, it is `n_rows` times
    the largest count, because a batch can contain the same sample more than once.
    """
    if wraps:
        tokens, trained = (n_rows * int(counts.max()) for counts in lengths)
    else:
        tokens, trained = (int(np.sort(counts)[-n_rows:].sum()) for counts in lengths)
    return tokens, trained


class RowPerSample:
    """A mixin with methods for a `Dataset` in which every sample is one row."""

    def lengths(self: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths of all samples; see `Dataset.lengths`."""
        every = range(self.n_samples)
        counts = ([of(i) for i in every] for of in (self.n_tokens, self.n_trained))
        tokens, trained = (np.array(c, np.int64) for c in counts)
        return tokens, trained

    def take(
        self: Any, order: Shuffled, first: int, n_rows: int, *, wraps: bool
    ) -> tuple[Batch, int]:
        """Return the next `n_rows` samples in the order, one per row."""
        places = np.arange(first, first + n_rows)
        places = places % self.n_samples if wraps else places[places < self.n_samples]
        return self.batch(order.order[places].tolist()), len(places)

    def used(self: Any, order: Shuffled, first: int, n_rows: int, *, wraps: bool) -> int:
        """Return `n_rows`, or the number of remaining samples if the order does not wrap."""
        return n_rows if wraps else min(n_rows, int(self.n_samples) - first)

    def largest(self: Any, n_rows: int, *, wraps: bool) -> tuple[int, int]:
        """Return the bounds from `largest_rows`."""
        return largest_rows(self.lengths(), n_rows, wraps)

    def per_batch(self, n_rows: int) -> float:
        """Return `n_rows`, because each sample is one row."""
        return n_rows
