"""Mirostat: drop candidates so that the surprise of the text, in bits per token, stays at `tau`.

Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity" (2021).
"""

from __future__ import annotations

import numpy as np

from nbllama.generation.sampling.filters import Candidates, in_order, softmax, top_k
from nbllama.generation.sampling.random import Random

_MOST = 100  # candidates from which version 1 estimates the exponent of Zipf's law

f32 = np.float32


class Mirostat:
    """Both versions of mirostat; `choose` draws a token and updates the control value `mu`.

    `version` 1 estimates how many candidates (k) give a mean surprise of mu; version 2 drops
    candidates with a surprise above mu. mu starts at 2 tau and decreases by eta * (surprise - tau)
    after each token.
    """

    def __init__(self, version: int, tau: float, eta: float, n_vocab: int) -> None:
        self._version = version
        self._tau, self._eta = f32(tau), f32(eta)
        self._n_vocab = n_vocab
        self.mu = f32(2) * self._tau

    def reset(self) -> None:
        """Reset `mu` to twice the target surprise."""
        self.mu = f32(2) * self._tau

    def choose(self, c: Candidates, random: Random) -> int:
        """Draw a candidate and return its id."""
        c = in_order(c)
        if self._version == 1:
            c = top_k(c, self._count(softmax(c)))
        else:
            with np.errstate(divide="ignore"):
                above = -np.log2(softmax(c)) > self.mu
            c = c.take(slice(max(1, int(above.argmax())) if above.any() else None), True)
        p = softmax(c)
        drawn = random.index(p)
        surprise = -np.log2(p[drawn])
        self.mu = self.mu - self._eta * (surprise - self._tau)
        return int(c.ids[drawn])

    def _count(self, p: np.ndarray) -> int:
        """Return k from Zipf's law p_i ~ i^-s (equation 9 of the paper).

        s is fitted by least squares to the most likely candidates. If k exceeds 2^31, all
        candidates are kept, whereas llama.cpp keeps only one.
        """
        n = min(_MOST - 1, len(p) - 1)
        i = np.arange(n, dtype=f32)
        with np.errstate(all="ignore"):
            t, b = np.log((i + f32(2)) / (i + f32(1))), np.log(p[:n] / p[1 : n + 1])
            s = np.sum(t * b, dtype=f32) / np.sum(t * t, dtype=f32)
            e = s - f32(1)
            k = (e * f32(2) ** self.mu / (1 - f32(self._n_vocab) ** -e)) ** (1 / s)
        if np.isnan(k):
            return 1
        return max(1, int(min(k, f32(len(p)))))
