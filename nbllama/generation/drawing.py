"""Several random answers to each of many prompts, all at once.

Each answer is drawn from the model's own distribution, without filters, with separate random
numbers (`Stream`). So an answer depends on the model, the prompt and the key of its stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from nbllama.errors import NOT_A_NUMBER, NbllamaError
from nbllama.generation.batch import Group
from nbllama.generation.states import state_floats
from nbllama.lora.pairs import Adapter
from nbllama.model.activations import forward_bytes
from nbllama.model.passes import Model, layout
from nbllama.model.weights import Weights

ROWS = 64  # maximum number of answers that grow together; all answers to one prompt always do


class Stream:
    """Random numbers in [0, 1) that depend only on a key of integers, each at least 0."""

    def __init__(self, *key: int) -> None:
        digest = hashlib.sha256(repr(tuple(map(int, key))).encode()).digest()
        # numpy fixes the raw numbers of a bit generator for all of its versions
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64))

    def draw(self) -> float:
        """Return the next number."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53


def draw_token(logits: np.ndarray, unit: float, temperature: float) -> int:
    """Return a token from logits float32 `[V]`; `unit`: a random number in [0, 1).

    Raises `NbllamaError` if the logits are not finite.
    """
    top = logits.max()
    if not np.isfinite(top):
        raise NbllamaError(NOT_A_NUMBER)
    up_to = np.cumsum(np.exp((logits - top) / np.float32(temperature)), dtype=np.float64)
    at = int(np.searchsorted(up_to, unit * up_to[-1], side="right"))
    return min(at, len(up_to) - 1)


def prompts_at_once(copies: int) -> int:
    """Return the number of prompts, with `copies` answers each, that are processed together."""
    return max(1, ROWS // copies)


def draw_many(
    model: Model,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[Stream],
    max_new_tokens: int,
    *,
    adapter: Adapter | None = None,
    temperature: float = 1.0,
    check: Callable[[], None] | None = None,
) -> list[list[int]]:
    """Draw the same number of answers to each prompt.

    Parameters
    ----------
    model : Model
        The base model.
    prompts : sequence of sequences of int
        Token ids of each prompt, at least one.
    streams : sequence of Stream
        One for each answer: first those to the first prompt.
    max_new_tokens : int
        Maximum number of tokens per answer.
    adapter : Adapter, optional
        LoRA pairs to apply.
    temperature : float
        Divides the logits; above 0.
    check : callable, optional
        Called before each token; it may raise.

    Returns
    -------
    list of list of int
        The answers in the order of the streams. An answer that the model has ended includes
        the end-of-generation token.

    Raises
    ------
    NbllamaError
        Logits that are not finite.
    """
    copies = len(streams) // len(prompts)
    if copies * len(prompts) != len(streams) or not copies:
        raise ValueError(f"{len(streams)} streams for {len(prompts)} prompts")
    at_once, answers = prompts_at_once(copies), list[list[int]]()
    for start in range(0, len(prompts), at_once):
        own = streams[start * copies : (start + at_once) * copies]

        def choose(
            rows: Sequence[int], logits: np.ndarray, own: Sequence[Stream] = own
        ) -> list[int]:
            return [
                draw_token(z, own[row].draw(), temperature)
                for row, z in zip(rows, logits, strict=True)
            ]

        part = prompts[start : start + at_once]
        group = Group(model, adapter, part, max_new_tokens, check=check, copies=copies)
        answers += group.run(choose, keep_end=True)
    return answers


def drawing_bytes(
    model: Weights, adapter: Adapter | None, n_prompts: int, copies: int, *, prompt: int, most: int
) -> int:
    """Return the memory in bytes that `draw_many` needs.

    prompt, most: lengths in tokens of the longest prompt and the longest answer.
    """
    hp = model.hp
    at_once = min(n_prompts, prompts_at_once(copies))
    rows = at_once * copies
    cache = 2 * len(hp.attention_layers) * rows * (prompt + most) * hp.n_head_kv * hp.head_dim
    # keys and values of one block are joined for attention
    joined = 2 * rows * (prompt + most) * hp.n_head_kv * hp.head_dim
    numbers = cache + joined + rows * (2 * hp.n_vocab + 2 * state_floats(hp))
    return 4 * numbers + forward_bytes(layout(model, adapter, max(rows, at_once * prompt)))
