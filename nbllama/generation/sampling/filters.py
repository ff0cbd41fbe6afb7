"""Samplers that drop candidates or change their logits, independently of earlier tokens.

Sums are computed sequentially and in float32 in the same places as in llama.cpp, because a
rounding difference can change which tokens a filter keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """Possible next tokens, with their ids (int64 `[n]`) and logits (float32 `[n]`).

    `ordered` says whether the tokens are sorted, most likely first.
    """

    ids: np.ndarray
    logits: np.ndarray
    ordered: bool = False

    def take(self, which: np.ndarray | slice, ordered: bool) -> Candidates:
        """Return the candidates with indices `which`."""
        return Candidates(self.ids[which], self.logits[which], ordered)


def in_order(c: Candidates) -> Candidates:
    """Sort by descending logit, then by ascending id."""
    if c.ordered:
        return c
    return c.take(np.argsort(-c.logits, kind="stable"), True)


def softmax(c: Candidates) -> np.ndarray:
    """Return the probabilities exp(l - max l) / sum, float32 `[n]`."""
    p: np.ndarray = np.exp(c.logits - c.logits.max())
    p /= np.cumsum(p)[-1]
    return p


def top_k(c: Candidates, k: int) -> Candidates:
    """Keep the k most likely tokens, or all if k is 0 or less.

    Fan et al., "Hierarchical Neural Story Generation" (2018).
    """
    if k <= 0:
        return c
    if c.ordered or k >= len(c.ids):
        return in_order(c).take(slice(k), True)
    border = np.partition(c.logits, len(c.logits) - k)[len(c.logits) - k]
    above = np.flatnonzero(c.logits > border)
    equal = np.flatnonzero(c.logits == border)[: k - len(above)]
    return in_order(c.take(np.concatenate([above, equal]), False))


def top_p(c: Candidates, p: float) -> Candidates:
    """Keep the smallest set of most likely tokens whose total probability is at least p.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    if p >= 1:
        return c
    q = softmax(c)
    if not c.ordered:
        order = np.argsort(-c.logits, kind="stable")
        c, q = c.take(order, True), q[order]
    reached = np.cumsum(q) >= np.float32(p)
    return c.take(slice(int(reached.argmax()) + 1 if reached.any() else None), True)


def min_p(c: Candidates, p: float) -> Candidates:
    """Keep the most likely token, and those that are at least p times as likely.

    Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024).
    """
    if p <= 0:
        return c
    return c.take(c.logits >= c.logits.max() + min(np.log(np.float32(p)), 0), c.ordered)


def typical(c: Candidates, p: float) -> Candidates:
    """Keep the tokens whose surprise is nearest to the mean, until their probabilities sum to p.

    The surprise is -log p_i, and its mean is the entropy. Meister et al., "Locally Typical
    Sampling" (2022).
    """
    if p >= 1:
        return c
    c = in_order(c)
    q = softmax(c)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(q)
        entropy = np.cumsum(np.where(q > 0, q * surprise, np.float32(0)))[-1]
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    passed = np.cumsum(q[order]) > np.float32(p)
    return c.take(order[: int(passed.argmax()) + 1 if passed.any() else None], False)


def temperature(c: Candidates, temp: float) -> Candidates:
    """Divide the logits by temp; if temp is 0 or less, keep only the (first) most likely token."""
    if temp <= 0:
        best = int(c.logits.argmax())
        return c.take(slice(best, best + 1), True)
    return c._replace(logits=c.logits / np.float32(temp))
