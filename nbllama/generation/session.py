"""Greedy generation with a KV cache, with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.errors import UsageError
from nbllama.generation.cache import new_cache
from nbllama.generation.states import States, state_floats
from nbllama.generation.token_program import TokenProgram, has_program
from nbllama.kernels.own_cores import own_cores
from nbllama.lora.pairs import Adapter
from nbllama.model import per_layer
from nbllama.model.block import block_forward
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.model.weights import Weights
from nbllama.ops.rope import rope

PROMPT_STEP = 512  # number of prompt tokens to process at a time


class KVCache:
    """The keys, values and states of one sequence (see `new_cache`).

    `layers` lists the blocks with attention, in order, and `length` is the number of tokens.
    """

    def __init__(self, model: Model, n_ctx: int) -> None:
        hp = model.hp
        self.layers = hp.attention_layers
        self.k: Any = new_cache(hp, (n_ctx,))
        self.v: Any = new_cache(hp, (n_ctx,))
        self.states = States(hp, 1) if state_floats(hp) else None
        self.n_ctx = n_ctx
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Size of keys, values and states in bytes."""
        states = self.states.nbytes if self.states is not None else 0
        return int(sum(x.nbytes for x in (*self.k, *self.v)) + states)

    def exchange(self, layer: int, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append the keys and values of new tokens, and return all keys and values."""
        at, end = self.layers.index(layer), self.length + len(k)
        self.k[at][self.length : end] = k
        self.v[at][self.length : end] = v
        return self.k[at][:end], self.v[at][:end]

    def cut(self, start: int, end: int) -> None:
        """Remove tokens `start` to `end - 1`; the entries of later tokens fill the gap unchanged.

        States cannot be rewound, so if there are states and the last token is removed, all tokens
        are removed.
        """
        if not 0 <= start <= end <= self.length:
            raise ValueError(f"tokens {start} to {end} of {self.length} cannot be removed")
        if self.states is not None and start < end == self.length:
            self.states.clear()
            start = 0
        left = self.length - end
        for x in (*self.k, *self.v):  # block by block: numpy makes a copy if ranges overlap
            x[start : start + left] = x[end : self.length]
        self.length = start + left


class Session:
    """One sequence that grows token by token.

    `step` is the number of prompt tokens to process at a time. `check` is called between blocks; if
    it raises, the step leaves the session unchanged. Single tokens use a fast path
    (`nbllama.generation.token_program`) in which products with quantised weights use integers, as
    in llama.cpp, unless `exact` is set.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        n_ctx: int,
        *,
        step: int | None = None,
        check: Callable[[], None] | None = None,
        exact: bool = False,
    ) -> None:
        self.model = model
        self.cache = KVCache(model, n_ctx)
        self._bound = Bound(model, adapter)
        self._check = check
        most = min(step or PROMPT_STEP, n_ctx)
        self._acts = model.forward_activations(adapter, most)
        self._exact = exact
        self._has_program = has_program(model)
        self._program: TokenProgram | None = None

    @property
    def nbytes(self) -> int:
        """Size of the KV cache, the activations and the single-token work space in bytes."""
        single = self._program.nbytes if self._program is not None else 0
        return self.cache.nbytes + self._acts.nbytes + single

    @own_cores()
    def feed(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Append tokens; return the logits float32 `[V]` after the last token.

        Raises `UsageError` if the context is full or a token is not in the vocabulary.
        """
        if len(tokens) == 0:
            raise UsageError("nothing to complete: the prompt has no tokens")
        if self.cache.length + len(tokens) > self.cache.n_ctx:
            raise UsageError(f"the context of {self.cache.n_ctx} tokens is full")
        ids = np.array(tokens, np.int64)
        if ids.min() < 0 or ids.max() >= self.model.hp.n_vocab:
            raise UsageError(f"a token is outside the vocabulary of {self.model.hp.n_vocab} tokens")
        step = self._acts.most_tokens
        for start in range(0, len(ids), step):
            part = ids[start : start + step].astype(np.int32)
            # a program does not report intermediate results to a watcher
            if len(part) == 1 and self.model.watch is None and self._has_program:
                logits = self._run_single(part)
                continue
            last = self._run(part)
            if start + step >= len(ids):
                logits = self.model.logits(self._bound, last, self._acts.pool("panels"))[0]
        return logits

    def truncate(self, length: int) -> None:
        """Drop all tokens after the first `length`.

        If the model has states and there is anything to drop, all tokens are dropped.
        `cache.length` is the number of remaining tokens. Raises ValueError if there are fewer than
        `length` tokens.
        """
        self.cache.cut(length, self.cache.length)

    def shift(self, start: int, count: int) -> None:
        """Drop `count` tokens at `start`, and move later tokens back by `count` positions.

        Keys after the gap are rotated back by `count` positions but still contain information from
        the dropped tokens. Source: llama.cpp, `llama_memory_seq_rm`, `llama_memory_seq_add`. Raises
        ValueError if any of these tokens does not exist.
        """
        self.cache.cut(start, start + count)
        for layer, keys in zip(self.cache.layers, self.cache.k, strict=True):
            _turn_back(self.model, layer, keys[start : self.cache.length], count)

    def _embed(self, tokens: np.ndarray) -> Batch:
        """Write the token embeddings to `acts.x(0)`; return the tokens and positions as a batch."""
        n, past = len(tokens), self.cache.length
        batch = Batch(
            tokens,
            np.full(n, NOT_TRAINED, np.int32),
            np.arange(past, past + n, dtype=np.int32),
            np.array([0, n], np.int32),
        )
        self.model.embed_tokens(self._bound, self._acts, batch)
        return batch

    def _run_single(self, token: np.ndarray) -> np.ndarray:
        """Run one token through the whole model; return the logits `[V]`."""
        if self._program is None:
            x, k, v = self._acts.x(0, 1)[0], self.cache.k, self.cache.v
            self._program = TokenProgram(
                self.model, self._bound, k=k, v=v, x=x, exact=self._exact,
                rows=per_layer.rows_of_token(self._acts, self.model.hp),
                states=self.cache.states,
            )  # fmt: skip
        if self._check is not None:
            self._check()
        self._embed(token)
        logits = self._program.run(self.cache.length)
        self.cache.length += 1
        return logits.copy()

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        """Run tokens through all blocks; return the last token's residual stream `[1, C]`."""
        n, past = len(tokens), self.cache.length
        batch = self._embed(tokens)
        offsets, states = np.array([0, past + n], np.int32), self.cache.states
        if states is not None:
            states.begin([0])
        for layer in range(self.model.hp.n_layer):
            if self._check is not None:
                self._check()
            block_forward(
                self.model, layer, self._bound, self._acts, batch=batch,
                cache=self.cache.exchange, k_offsets=offsets,
                states=None if states is None else states.exchange,
            )  # fmt: skip
        if states is not None:
            states.commit()
        self.cache.length += n
        return self._acts.x(self.model.hp.n_layer, n)[-1:]


def stream(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int = 128,
    adapter: Adapter | None = None,
    *,
    exact: bool = False,
) -> Iterator[int]:
    """Yield the token ids of the most likely continuation.

    Parameters
    ----------
    model : Model
        The base model.
    prompt : sequence of int
        Token ids, at least one.
    max_new_tokens : int
        Maximum number of new tokens; 0 or more.
    adapter : Adapter, optional
        LoRA pairs to apply; by default, the base model is used alone.
    exact : bool
        See `Session`.

    Yields
    ------
    int
        The next token id; an end-of-generation token ends the text and is not yielded.
    """
    session = Session(model, adapter, len(prompt) + max_new_tokens, exact=exact)
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        token = int(np.argmax(session.feed(tokens)))
        if token in model.tokenizer.eog_ids:
            return
        yield token
        tokens = [token]


def generate(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int = 128,
    adapter: Adapter | None = None,
    *,
    exact: bool = False,
) -> list[int]:
    """Return the greedy continuation of `prompt`, without the end-of-generation token.

    Parameters
    ----------
    model : Model
        The base model.
    prompt : sequence of int
        Token ids, at least one.
    max_new_tokens : int
        Maximum number of new tokens; 0 or more.
    adapter : Adapter, optional
        LoRA pairs to apply; by default, the base model is used alone.
    exact : bool
        See `Session`.

    Returns
    -------
    list of int
        The new token ids.
    """
    return list(stream(model, prompt, max_new_tokens, adapter, exact=exact))


def _turn_back(model: Weights, layer: int, y: np.ndarray, count: int) -> None:
    """Rotate y `[N, heads, D]`, the output of RoPE, back by `count` positions, in place."""
    if tables := model.rope_tables(count + 1, layer):
        cos, sin = (table[count : count + 1] for table in tables)
        size = np.hypot(cos, sin)  # y already includes YaRN's magnitude factor
        none = np.zeros(len(y), np.int32)
        halves = model.hp.rope_pairing == "halves"
        rope(y, none, cos / size, sin / size, halves=halves, inverse=True)
