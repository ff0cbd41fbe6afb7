"""Share the beginnings of a micro-batch's samples, so that each common token is computed once.

Every chat template repeats its system prompt in each record, text-to-SQL repeats a schema, and a
conversation with one sample per answer repeats all earlier turns. A token of a causal model depends
only on the tokens before it, so two samples that begin with the same tokens have the same
activations there. `share` rearranges a micro-batch: a row of a sample is left out if an earlier
sample of the batch has the same tokens up to it.

    samples            a b c d e    a b c f    a b c d g h
    computed rows      a b c d e    f          g h
    row of each token  0 1 2 3 4    0 1 2 5    0 1 2 3 6 7

Ops that work row by row need no change. Attention reads the keys of a path, which is a sample's
rows in order (`nbllama.ops.attention.tree`), and the loss reads the rows of the trained positions
of all samples in the same order as without sharing; a row can occur several times, each time with a
different target. So the loss has the same bits, and the gradients are the same sums in a different
order.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from nbllama.data.batch import Batch, Tree

LEAST = 2  # tokens that two samples must have in common: BOS alone is not worth it
FEWEST_ROWS = 5  # with fewer rows, linear layers and attention use code that rounds differently


class Beginnings:
    """A batch's samples so far. Each one shares most with its neighbours in sorted order."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._samples: list[tuple[int, np.ndarray]] = []

    def add(self, tokens: np.ndarray) -> tuple[int, int]:
        """Add a sample, int32 `[n]`.

        Returns the number (from 0) of an earlier sample that shares most tokens with it, and how
        many they share: 0 if fewer than `LEAST`.
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
    """Return bytes that sort in the same order as the tokens."""
    return tokens.astype(">i4").tobytes()


def common(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of common tokens at the start of both; 0 if fewer than `LEAST`."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    same = int(different[0]) if len(different) else n
    return same if same >= LEAST else 0


def share(batch: Batch) -> Batch:
    """Return the batch with each shared beginning once; the batch itself if nothing is shared.

    The result has a `Tree`. Samples with a common beginning use the rows of the first of them.
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
    """Return the maximum number of rows of `n` samples (int32 `[n]` each) with sharing.

    The samples are the leaves of a tree of tokens. n paths cover the most of it if each is the
    longest one left: at every branching the deepest path continues and the others end there.
    """
    tokens = sorted(samples, key=sort_key)
    ended: list[int] = []  # lengths of paths, from the branching where they end
    open_: list[tuple[int, int]] = []  # (common with the next, deepest) of subtrees to the left
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
