"""Share common beginnings of samples in a micro-batch, to compute their tokens only once.

Chat templates repeat the system prompt in each record, text-to-SQL data repeat a schema, and a
conversation with one sample per answer repeats all earlier turns. In a causal model, a token
depends only on the tokens before it, so two samples that begin with the same tokens have the same
activations for those tokens. `share` rearranges a micro-batch and leaves out each row of a sample
if the tokens up to that row are the same as in an earlier sample of the batch.

    samples            a b c d e    a b c f    a b c d g h
    computed rows      a b c d e    f          g h
    row of each token  0 1 2 3 4    0 1 2 5    0 1 2 3 6 7

Row-wise ops need no change. Attention reads the keys of a path, which consists of the rows of a
sample in order (`nbllama.ops.attention.tree`). The loss reads one row per trained position, in the
same order as without sharing; a row can occur several times, with different targets. As a result,
the loss is bit-identical, and the gradients are the same sums in a different order.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nbllama.data.batch import Batch, Tree

LEAST = 2  # minimum number of common tokens; sharing only BOS is not worthwhile
FEWEST_ROWS = 5  # with fewer rows, linear layers and attention use code with different rounding


class Beginnings:
    """The samples that have been added to a batch so far, in sorted order.

    The sample that shares the most tokens with a new sample is next to it in this order.
    """

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._samples: list[tuple[int, np.ndarray]] = []

    def add(self, tokens: np.ndarray) -> tuple[int, int]:
        """Add a sample, int32 `[n]`.

        Returns the index of the earlier sample that shares the most tokens with the new sample, and
        the number of shared tokens (0 if there are fewer than `LEAST`).
        """
        key = sort_key(tokens)
        at = bisect(self._keys, key)
        n_shared, other = 0, 0
        for number, seen in self._samples[max(0, at - 1) : at + 1]:
            if (n := common(seen, tokens)) > n_shared:
                n_shared, other = n, number
        self._keys.insert(at, key)
        self._samples.insert(at, (len(self._samples), tokens))
        return other, n_shared


def sort_key(tokens: np.ndarray) -> bytes:
    """Return bytes that sort in the same order as the token sequences themselves."""
    return tokens.astype(">i4").tobytes()


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common beginning of `a` and `b`, or 0 if it is below `LEAST`."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    same = int(different[0]) if len(different) else n
    return same if same >= LEAST else 0


def share(batch: Batch) -> Batch:
    """Return the batch with each shared beginning stored once.

    If nothing is shared or fewer than `FEWEST_ROWS` rows remain, the batch itself is returned.

    The result has a `Tree`. Samples with a common beginning use the rows of the first such sample.
    """
    rows = np.empty(batch.n_tokens, np.int32)
    new = np.ones(batch.n_tokens, bool)
    offsets, paths = [0], []
    seen, starts, n = Beginnings(), batch.seq_offsets, 0
    for first, last in pairwise(starts.tolist()):
        other, same = seen.add(batch.tokens[first:last])
        begin = int(starts[other])
        rows[first : first + same] = rows[begin : begin + same]
        new[first : first + same] = False
        more = last - first - same
        rows[first + same : last] = np.arange(n, n + more)
        if more:
            n += more
            offsets.append(n)
            paths.append(rows[first:last])
    if n == batch.n_tokens or n < FEWEST_ROWS:
        return batch
    path = np.concatenate(paths)
    order = np.argsort(path, kind="stable").astype(np.int32)
    begins = np.searchsorted(path[order], np.arange(n + 1)).astype(np.int32)
    key_offsets = np.cumsum([0, *map(len, paths)], dtype=np.int32)
    return Batch(
        batch.tokens[new],
        batch.targets,
        batch.positions[new],
        np.array(offsets, np.int32),
        Tree(batch, rows, path, key_offsets, order, begins),
    )


def most_rows(samples: Sequence[np.ndarray], n: int) -> int:
    """Return the maximum number of rows that any `n` of the samples (int32 arrays) need.

    Shared rows count once. The samples are the leaves of a tree of tokens. To cover as much of the
    tree as possible with n paths, choose the longest remaining path n times. At every branch, the
    deepest path continues and the others end.
    """
    tokens = sorted(samples, key=sort_key)
    ended: list[int] = []  # lengths of paths from the branch where they end
    open_: list[tuple[int, int]] = []  # per subtree to the left: (shared with the next, deepest)
    for i, sample in enumerate(tokens):
        deepest = len(sample)
        shared = common(sample, tokens[i + 1]) if i + 1 < len(tokens) else 0
        while open_ and open_[-1][0] >= shared:
            depth, left = open_.pop()
            ended.append(min(left, deepest) - depth)
            deepest = max(left, deepest)
        open_.append((shared, deepest))
    ended += [deepest for _, deepest in open_]
    return sum(sorted(ended, reverse=True)[:n])
