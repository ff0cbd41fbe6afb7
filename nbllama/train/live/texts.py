"""Show training texts with their per-token losses, which every step computes anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.text.characters import character_groups
from nbllama.text.tokenizer import Tokenizer

MOST_TOKENS = 700  # per displayed text
FOLLOWED = 4  # number of samples that are shown whenever they occur
MOST_VISITS = 60  # maximum number of rows per followed sample


class Scored(NamedTuple):
    """The tokens, targets and losses `[n]` of one sequence; the loss of untrained tokens is NaN."""

    tokens: np.ndarray
    targets: np.ndarray
    losses: np.ndarray


def sequences(batches: Sequence[Batch], losses: np.ndarray) -> Iterator[Scored]:
    """Split micro-batches into sequences; `losses` lists the losses of all trained tokens in order.

    Raises `ValueError` if the number of losses differs from the number of trained tokens.
    """
    n_trained = sum(batch.n_trained for batch in batches)
    if len(losses) != n_trained:
        raise ValueError(f"this step has {n_trained} trained tokens, but {len(losses)} losses")
    at = 0
    for batch in batches:
        rows = np.flatnonzero(batch.targets != NOT_TRAINED)
        every = np.full(batch.n_tokens, np.nan, np.float32)
        every[rows] = losses[at : at + len(rows)]
        at += len(rows)
        for a, b in pairwise(batch.seq_offsets):
            yield Scored(batch.tokens[a:b], batch.targets[a:b], every[a:b])


class Texts:
    """The sequences shown on the page, for which `tokens` rows are created in the log.

    In each of the first few steps, the first sequence is selected to be followed. From then on, a
    row is created each time it occurs, up to `MOST_VISITS` times.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._followed: dict[bytes, list[int]] = {}  # tokens -> sample number, visits so far
        self._turn = 0

    def followed(self, iteration: int, found: Sequence[Scored]) -> Iterator[dict[str, Any]]:
        """Create a row for each followed sequence in a step."""
        for i, one in enumerate(found):
            name = one.tokens.tobytes()
            if i == 0 and len(self._followed) < FOLLOWED:
                self._followed.setdefault(name, [len(self._followed) + 1, 0])
            known = self._followed.get(name)
            if known is not None and known[1] < MOST_VISITS:
                known[1] += 1
                yield self._row(iteration, one, known[0])

    def passing(self, iteration: int, found: Sequence[Scored]) -> dict[str, Any]:
        """Create a row for one sequence, taken from a different position at each step."""
        self._turn += 1
        return self._row(iteration, found[self._turn % len(found)], 0)

    def _row(self, iteration: int, one: Scored, sample: int) -> dict[str, Any]:
        # the last target follows the input, so it is part of the text
        ids = [*one.tokens.tolist(), int(max(one.targets[-1], 0))]
        losses = np.array([np.nan, *one.losses])
        if one.targets[-1] == NOT_TRAINED:
            ids, losses = ids[:-1], losses[:-1]
        trained = np.flatnonzero(~np.isnan(losses))
        first = max(0, min(int(trained[0]) - 100, len(ids) - MOST_TOKENS)) if len(trained) else 0
        ids, losses = ids[first : first + MOST_TOKENS], losses[first : first + MOST_TOKENS]
        apart = (~np.isnan(losses)).tolist()
        groups = character_groups(self._tokenizer, ids, apart)
        means = [losses[g.first : g.last + 1].mean() for g in groups]
        return {
            "event": "tokens", "iter": iteration, "sample": sample,
            "pieces": [g.text for g in groups],
            "losses": [float(f"{m:.4g}") if np.isfinite(m) else None for m in means],
        }  # fmt: skip
