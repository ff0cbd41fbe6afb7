"""Extend a text token by token within a context of limited size.

The context is handled as in llama.cpp's completion program: when it is full, either the older half
is dropped (`shift`) or the text ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nbllama.errors import NbllamaError
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.session import Session
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model


class ContextFull(NbllamaError):
    """Raised when the text cannot grow any further."""


class Predictor:
    """The tokens of a text, and the session that has read some or all of these tokens.

    `n_ctx` is the size of the context; as in llama.cpp, one of its positions is never used.
    `batch` is the number of prompt tokens to process at a time, and `keep` the number of tokens at
    the start that a shift keeps. For `exact`, see `Session`. `check` is called between the blocks
    of the model and may raise.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        sampler: Sampler,
        n_ctx: int,
        *,
        batch: int = 512,
        shift: bool = False,
        keep: int = 0,
        exact: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.sampler = sampler
        self.keep = keep
        self.times = Times()
        self._session = Session(model, adapter, n_ctx, step=batch, check=check, exact=exact)
        self._batch = batch
        self._shift = shift
        self._n_ctx = n_ctx
        self._forgotten = 0
        self._accepted = 0

    @property
    def n_read(self) -> int:
        """Number of tokens that the session has read, including dropped ones."""
        return self._forgotten + self._session.cache.length

    def append(self, tokens: Sequence[int]) -> None:
        """Continue the text with `tokens`."""
        self.tokens += tokens

    def become(self, tokens: Sequence[int]) -> None:
        """Set the text to `tokens`, without rereading the beginning that both texts share.

        Raises `ContextFull` if the old and new text differ in tokens that have been dropped.
        """
        same = 0
        for old, new in zip(self.tokens[: self.n_read], tokens[:-1], strict=False):
            if old != new:
                break
            same += 1
        left = self._session.cache.length - (self.n_read - same)
        if left < 0 or (self._forgotten and left <= self.keep):
            raise ContextFull("the start of the text was dropped and cannot be changed")
        self._session.truncate(left)
        self.tokens = list(tokens)
        self._accepted = same

    def reset_sampler(self) -> None:
        """Reset the penalties and the random number generator."""
        self.sampler.reset()
        self._accepted = len(self.tokens)

    def draw(self, most: int, eog: frozenset[int]) -> Iterator[int]:
        """Yield up to `most` more tokens (no limit if negative), until a token in `eog` is drawn.

        Raises `ContextFull`.
        """
        n = 0
        while most < 0 or n < most:
            token = self.sampler.sample(self.read())
            self.append([token])
            self._accept()
            n += 1
            yield token
            if token in eog:
                return

    def read(self) -> np.ndarray:
        """Read the rest of the text; return the logits float32 `[V]` after the last token.

        Raises `ContextFull`. If the session's `check` raises, a later call continues at the same
        position.
        """
        self._accept()
        start, begun = time.monotonic(), self.n_read
        if begun == len(self.tokens):
            raise ValueError("there is nothing to read")
        while self.n_read < len(self.tokens):
            piece = self.tokens[self.n_read : self.n_read + self._batch]
            self._make_room(len(piece))
            logits = self._session.feed(piece)
        self.times.add(len(self.tokens) - begun, time.monotonic() - start)
        return logits

    def _accept(self) -> None:
        for token in self.tokens[self._accepted :]:
            self.sampler.accept(token)
        self._accepted = len(self.tokens)

    def _make_room(self, n: int) -> None:
        while (held := self._session.cache.length) + n >= self._n_ctx:
            count = (held - self.keep) // 2
            if not self._shift or count < 1:
                raise ContextFull(f"the context of {self._n_ctx} tokens is full")
            self._session.shift(self.keep, count)
            self._forgotten += count


class Times:
    """Token counts and times, kept separately for reading prompts and for generating tokens."""

    def __init__(self) -> None:
        self.prompt = self.answer = (0, 0.0)

    def add(self, n: int, seconds: float) -> None:
        """Record a pass of `n` tokens.

        If n > 1, the pass reads part of a prompt; otherwise, it generates a token.
        """
        if n > 1:
            self.prompt = (self.prompt[0] + n, self.prompt[1] + seconds)
        else:
            self.answer = (self.answer[0] + 1, self.answer[1] + seconds)

    def line(self) -> str:
        """Return a line with token counts and tokens per second, for reading and generation."""
        parts = []
        for name, (n, seconds) in (("read", self.prompt), ("generated", self.answer)):
            if n:
                parts.append(f"{name} {n} tokens, {n / max(seconds, 1e-9):.1f} tokens/s")
        return "; ".join(parts)
