"""Measure how well a model predicts a text, and how much two models differ, in nats per token.

A text is split into chunks of `n_ctx` tokens, which are read separately. The first half of a chunk
serves only as context; each token in the second half is scored, given all preceding tokens in the
chunk. llama.cpp's `llama-perplexity` (`perplexity`, `kl_divergence`) uses the same method, so the
numbers are comparable:

    perplexity = exp(mean of -log p(token))
    KL(P ‖ Q) = sum over v of P(v) (log P(v) - log Q(v))

Uncertainties are standard errors of the mean over the scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nbllama.data.batch import Batch
from nbllama.errors import NOT_A_NUMBER, DataError, NbllamaError
from nbllama.lora.pairs import Adapter
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.text import Tokenizer

ROWS = 128  # positions whose logits are in memory at the same time


def text_tokens(tokenizer: Tokenizer, text: str, n_ctx: int, name: str) -> np.ndarray:
    """Return the int32 token ids of a text for `chunks`, with BOS and EOS if the model adds them.

    `name` is the name of the file with the text. Raises `DataError` for fewer than two chunks, as
    in llama.cpp, because the perplexity of a shorter text is meaningless.
    """
    ids = np.array(tokenizer.encode(text, add_special=True), np.int32)
    if len(ids) < 2 * n_ctx:
        raise DataError(
            f"{name}: {len(ids)} tokens, but {2 * n_ctx} are required with a context of {n_ctx}; "
            f"use "
            "a longer text or a smaller --ctx-size"
        )
    return ids


def chunks(ids: np.ndarray, n_ctx: int, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Split a text into full chunks (int32 `[n_ctx]`); the remainder is dropped.

    If the model adds BOS, the first token of each chunk is replaced with BOS.
    """
    out = [ids[i : i + n_ctx].copy() for i in range(0, len(ids) - n_ctx + 1, n_ctx)]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        for chunk in out:
            chunk[0] = tokenizer.bos_id
    return out


class Reader:
    """A model, with or without an adapter, that reads chunks of at most `n_ctx` tokens."""

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        n_ctx: int,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Prepare the model; `check` is called between blocks and may raise."""
        self.model, self._check = model, check
        self._bound = Bound(model, adapter)
        self._acts = model.forward_activations(adapter, n_ctx)

    def logits(self, tokens: np.ndarray, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield the logits float32 `[rows, V]` after positions `first` to `last - 1`.

        `tokens` is int32 `[N]`. Each array has at most `ROWS` rows. Raises `NbllamaError` if a
        logit is not finite.
        """
        n = len(tokens)
        batch = Batch.from_rows([(tokens, np.full(n, -1, np.int32))])
        self.model.forward(self._bound, self._acts, batch, self._check)
        x = self._acts.x(self.model.hp.n_layer, n)
        for start in range(first, last, ROWS):
            rows = np.ascontiguousarray(x[start : min(start + ROWS, last)])
            logits = self.model.logits(self._bound, rows)
            if not np.isfinite(logits).all():
                raise NbllamaError(NOT_A_NUMBER)
            yield logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the log softmax of each row, float64 `[M, V]`."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return -log p(target), float64 `[M]`, for logits `[M, V]`; sums are in float64."""
    top = logits.max(axis=1)
    total: np.ndarray = np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)
    wanted = logits[np.arange(len(logits)), targets]
    losses: np.ndarray = np.log(total) + top.astype(np.float64) - wanted
    return losses


def scored(n: int) -> tuple[int, int]:
    """Return the scored positions in a chunk of `n` tokens, as (first, last + 1).

    The prediction of the token after each of these positions is scored.
    """
    return n // 2, n - 1


def chunk_losses(reader: Reader, tokens: np.ndarray) -> np.ndarray:
    """Return -log p of the scored tokens in a chunk, float64 `[n - 1 - n // 2]`."""
    first, last = scored(len(tokens))
    pieces = []
    for logits in reader.logits(tokens, first, last):
        pieces.append(token_losses(logits, tokens[first + 1 : first + 1 + len(logits)]))
        first += len(logits)
    return np.concatenate(pieces)


@dataclass
class Compared:
    """A comparison of two models on the same tokens, with one float64 value per scored token.

    `kl` is KL(base ‖ other), never negative. `base` and `other` are -log p of the actual token.
    `same_top` says whether both models have the same most likely token.
    """

    kl: np.ndarray
    base: np.ndarray
    other: np.ndarray
    same_top: np.ndarray

    @staticmethod
    def joined(parts: Sequence[Compared]) -> Compared:
        """Join the results of several chunks, in order."""

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        return Compared(all_of("kl"), all_of("base"), all_of("other"), all_of("same_top"))


def compare_logits(base: np.ndarray, other: np.ndarray, targets: np.ndarray) -> Compared:
    """Compare the logits `[M, V]` of two models, given the actual tokens `[M]`."""
    p, q = log_softmax(base), log_softmax(other)
    rows = np.arange(len(targets))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    # rounding can turn a zero into a small negative number
    return Compared(
        np.maximum(kl, 0.0),
        -p[rows, targets],
        -q[rows, targets],
        base.argmax(axis=1) == other.argmax(axis=1),
    )


def compare_chunk(
    base: Reader, other: Reader, tokens: np.ndarray, first: int | None = None
) -> Compared:
    """Compare two models on the scored tokens of a chunk, or on all tokens after index `first`."""
    begin, last = scored(len(tokens))
    first = begin if first is None else first
    parts = []
    pairs = zip(base.logits(tokens, first, last), other.logits(tokens, first, last), strict=True)
    for p, q in pairs:
        parts.append(compare_logits(p, q, tokens[first + 1 : first + 1 + len(p)]))
        first += len(p)
    return Compared.joined(parts)


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, which is NaN for a single value."""

    value: float
    error: float

    @staticmethod
    def of(values: np.ndarray) -> Mean:
        """Compute the mean of `values` and its standard error, as in llama.cpp."""
        n = len(values)
        mean = float(values.mean(dtype=np.float64))
        if n < 2:
            return Mean(mean, math.nan)
        # llama.cpp: sqrt((mean of squares - square of mean) / (n - 1))
        return Mean(mean, math.sqrt(float(values.var(dtype=np.float64)) / (n - 1)))

    def exp(self) -> Mean:
        """Return the exponential of the mean; the error is a first-order approximation."""
        value = math.exp(self.value)
        return Mean(value, value * self.error)
