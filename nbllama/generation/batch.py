"""Generate greedy answers to many prompts in parallel.

If sequences are processed one by one, each weight is decoded again for every token. In this module,
each step computes one token of every unfinished sequence and decodes each weight once. The common
beginning of all prompts, such as a system message, is computed once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.errors import UsageError
from nbllama.generation.cache import new_cache
from nbllama.generation.states import States, state_floats
from nbllama.kernels.own_cores import own_cores
from nbllama.lora.pairs import Adapter
from nbllama.model.block import block_forward
from nbllama.model.bound import Bound
from nbllama.model.passes import Model

AT_ONCE = 16  # sequences; the cache has room for this many sequences of the maximum length

Choose = Callable[[Sequence[int], np.ndarray], list[int]]
"""A function of row numbers and logits (float32 `[rows, V]`) that returns the next tokens."""


def generate_many(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    adapter: Adapter | None = None,
    *,
    at_once: int = AT_ONCE,
    tell: Callable[[int, list[int]], None] | None = None,
    check: Callable[[], None] | None = None,
) -> list[list[int]]:
    """Complete each prompt greedily.

    All computation uses float32, as in `generation.Session(exact=True)`. The answers are the same
    as those of a session, unless two tokens are nearly equally likely.

    Parameters
    ----------
    model : Model
        The base model.
    prompts : sequence of sequences of int
        Token ids, at least one per prompt.
    max_new_tokens : int
        Maximum number of tokens per answer.
    adapter : Adapter, optional
        LoRA pairs to apply.
    at_once : int
        Number of prompts to process at a time.
    tell : callable, optional
        Called with (index, tokens) for each answer when its group of `at_once` prompts is complete.
    check : callable, optional
        Called before each token; it may raise.

    Returns
    -------
    list of list of int
        The answers in the order of the prompts, without the end-of-generation token.

    Raises
    ------
    UsageError
        A prompt is empty, or a token is outside the vocabulary.
    """
    if at_once < 1 or max_new_tokens < 0:
        raise ValueError("at_once must be at least 1, and max_new_tokens at least 0")
    for prompt in prompts:
        if not prompt:
            raise UsageError("nothing to complete: a prompt has no tokens")
        if min(prompt) < 0 or max(prompt) >= model.hp.n_vocab:
            raise UsageError(f"a token is outside the vocabulary of {model.hp.n_vocab} tokens")
    answers: list[list[int]] = []
    for start in range(0, len(prompts), at_once):
        group = Group(model, adapter, prompts[start : start + at_once], max_new_tokens, check=check)
        for found in group.run(_greedy):
            answers.append(found)
            if tell is not None:
                tell(len(answers) - 1, found)
    return answers


def _greedy(rows: Sequence[int], logits: np.ndarray) -> list[int]:
    """Choose the most likely token for each row."""
    best: list[int] = logits.argmax(axis=1).tolist()
    return best


class Group:
    """A group of sequences that are extended together.

    Each prompt occupies `copies` consecutive rows of the cache but is read only once.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        check: Callable[[], None] | None = None,
        copies: int = 1,
    ) -> None:
        self.model, hp = model, model.hp
        self._check = check
        self._max_new = max_new_tokens
        self._prompts, self._copies = [list(p) for p in prompts], copies
        longest, n = max(map(len, prompts)), len(prompts) * copies
        # exclude every prompt's last token, because reading it yields the next logits
        common = len(os.path.commonprefix(self._prompts))
        self._shared = min(common, min(map(len, prompts)) - 1)
        self._at = {layer: i for i, layer in enumerate(hp.attention_layers)}
        shape = (n, longest + max_new_tokens)
        self._k, self._v = new_cache(hp, shape), new_cache(hp, shape)
        self._states = States(hp, n) if state_floats(hp) else None
        self._lengths = [0] * n
        self._bound = Bound(model, adapter)
        most = max(self._shared, sum(len(p) - self._shared for p in prompts), n)
        self._acts = model.forward_activations(adapter, most)

    def run(self, choose: Choose, *, keep_end: bool = False) -> list[list[int]]:
        """Return the answers in the order of the rows.

        With `keep_end`, answers include the end-of-generation token, if there is one.
        """
        n, shared = len(self._lengths), self._shared
        answers: list[list[int]] = [[] for _ in range(n)]
        if self._max_new == 0:
            return answers
        if shared:
            self._feed([0], [self._prompts[0][:shared]])
            for cache in (*self._k, *self._v):
                cache[1:, :shared] = cache[:1, :shared]
            if self._states is not None:
                self._states.copy_first()
            self._lengths = [shared] * n
        logits = self._read()
        rows = list(range(n))
        while rows:
            still = []
            for row, token in zip(rows, choose(rows, logits), strict=True):
                ends = token in self.model.tokenizer.eog_ids
                if not ends or keep_end:
                    answers[row].append(token)
                if not ends and len(answers[row]) < self._max_new:
                    still.append(row)
            rows = still
            if rows:
                logits = self._step(rows, [answers[row][-1:] for row in rows])
        return answers

    def _step(self, rows: list[int], tokens: list[list[int]]) -> np.ndarray:
        """Append tokens to rows; return the logits `[rows, V]` after these tokens."""
        if self._check is not None:
            self._check()
        self._feed(rows, tokens)
        return self._logits(tokens)

    def _read(self) -> np.ndarray:
        """Read the rest of each prompt into its first row, and copy it to the prompt's other rows.

        Returns the logits of all rows.
        """
        n, copies = len(self._lengths), self._copies
        firsts = list(range(0, n, copies))
        logits = self._step(firsts, [p[self._shared :] for p in self._prompts])
        if copies == 1:
            return logits
        for first, prompt in zip(firsts, self._prompts, strict=True):
            others, size = slice(first + 1, first + copies), len(prompt)
            for of_block in (*self._k, *self._v):
                of_block[others, :size] = of_block[first, :size]
            if self._states is not None:
                self._states.copy(first, others)
            self._lengths[others] = [size] * (copies - 1)
        return logits.repeat(copies, axis=0)

    @own_cores()
    def _feed(self, rows: list[int], tokens: list[list[int]]) -> None:
        """Append `tokens[i]` to row `rows[i]`; the output of the last block remains in `acts`."""
        counts = [len(t) for t in tokens]
        past = [self._lengths[row] for row in rows]
        batch = Batch(
            np.array([t for row in tokens for t in row], np.int32),
            np.full(sum(counts), NOT_TRAINED, np.int32),
            np.concatenate(
                [np.arange(p, p + c, dtype=np.int32) for p, c in zip(past, counts, strict=True)]
            ),
            _offsets(counts),
        )
        k_offsets = _offsets([p + c for p, c in zip(past, counts, strict=True)])

        def exchange(layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            at = self._at[layer]
            return self._put(self._k[at], k, batch, rows), self._put(self._v[at], v, batch, rows)

        states = self._states
        if states is not None:
            states.begin(rows)

        self.model.embed_tokens(self._bound, self._acts, batch)
        for layer in range(self.model.hp.n_layer):
            block_forward(
                self.model, layer, self._bound, self._acts, batch=batch,
                cache=exchange, k_offsets=k_offsets,
                states=None if states is None else states.exchange,
            )  # fmt: skip
        if states is not None:
            states.commit()
        for row, count in zip(rows, counts, strict=True):
            self._lengths[row] += count

    def _put(self, cache: np.ndarray, new: np.ndarray, batch: Batch, rows: list[int]) -> np.ndarray:
        """Store `new` `[N, G, D]` and return all keys or values of `rows`, concatenated."""
        whole = []
        for i, row in enumerate(rows):
            first, last = batch.seq_offsets[i : i + 2].tolist()
            past = self._lengths[row]
            cache[row, past : past + last - first] = new[first:last]
            whole.append(cache[row, : past + last - first])
        return np.concatenate(whole)

    def _logits(self, tokens: list[list[int]]) -> np.ndarray:
        """Return the logits `[rows, V]` after the last token of each row."""
        ends = _offsets([len(t) for t in tokens])[1:] - 1
        x = self._acts.x(self.model.hp.n_layer, sum(map(len, tokens)))[ends]
        pool = self._acts.pool("panels")
        return self.model.logits(self._bound, x, pool)


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int32)
