"""Combine all samplers in llama.cpp's order."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from nbllama.errors import NOT_A_NUMBER, NbllamaError
from nbllama.generation.sampling import filters
from nbllama.generation.sampling.filters import Candidates
from nbllama.generation.sampling.mirostat import Mirostat
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.sampling.penalties import Penalties
from nbllama.generation.sampling.random import Random


class Sampler:
    """A sampler that combines all filters and penalties.

    Pass every token of the text to `accept`, including the prompt and the tokens from `sample`.
    The order without mirostat is penalties, top_k, typical, top_p, min_p, temperature, and a random
    draw; with mirostat, it is temperature, then mirostat. `banned` tokens are never chosen. A
    repeat_last_n of -1 means `n_ctx`.
    """

    def __init__(
        self, params: SamplingParams, n_vocab: int, n_ctx: int, banned: Collection[int] = ()
    ) -> None:
        self._params = params
        self._banned = np.array(sorted(banned), np.int64)
        self._ids = np.arange(n_vocab)
        self._penalties = Penalties(
            n_ctx if params.repeat_last_n == -1 else params.repeat_last_n,
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        self._mirostat = None
        if params.mirostat:
            self._mirostat = Mirostat(
                params.mirostat, params.mirostat_ent, params.mirostat_lr, n_vocab
            )
        self._random = Random(params.seed)

    def accept(self, token: int) -> None:
        """Record a token of the text."""
        self._penalties.accept(token)

    def reset(self) -> None:
        """Restore the initial state: forget all tokens and reseed the random number generator."""
        self._penalties.reset()
        if self._mirostat is not None:
            self._mirostat.reset()
        self._random = Random(self._params.seed)

    def sample(self, logits: np.ndarray) -> int:
        """Draw a token from logits float32 `[n_vocab]`.

        Raises `NbllamaError` if a logit is NaN or the largest logit is infinite.
        """
        if logits.shape != self._ids.shape:
            raise ValueError(f"logits have shape {logits.shape}, expected ({len(self._ids)},)")
        if len(self._banned):
            logits = logits.copy()
            logits[self._banned] = -np.inf
        if not np.isfinite(logits.max()):
            raise NbllamaError(NOT_A_NUMBER)
        c = Candidates(self._ids, logits)
        if self._mirostat is not None:
            c = filters.temperature(c, self._params.temp)
            return self._mirostat.choose(c, self._random)
        return self._draw(self.filtered(c))

    def filtered(self, c: Candidates) -> Candidates:
        """Apply all penalties and filters (without mirostat) and return the remaining candidates.

        `c` must contain the whole vocabulary.
        """
        params = self._params
        c = self._penalties.apply(c)
        c = filters.top_k(c, params.top_k)
        c = filters.typical(c, params.typical)
        c = filters.top_p(c, params.top_p)
        c = filters.min_p(c, params.min_p)
        return filters.temperature(c, params.temp)

    def _draw(self, c: Candidates) -> int:
        p = np.exp(c.logits - c.logits.max())
        up_to = np.cumsum(p, dtype=np.float64)
        drawn = int(np.searchsorted(up_to, up_to[-1] * self._random.uniform()))
        return int(c.ids[min(drawn, len(p) - 1)])
