"""Draw several random answers to each of many prompts in parallel.

Each answer is drawn from the unfiltered distribution of the model, with its own random numbers
(`Stream`). An answer therefore depends only on the model, the prompt and the key of the stream.
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

ROWS = 64  # maximum number of answers drawn in parallel; answers to one prompt are never split up


class Stream:
    """Random numbers in [0, 1) that depend only on a key of non-negative integers."""

    def __init__(self, *key: int) -> None:
        digest = hashlib.sha256(repr(tuple(map(int, key))).encode()).digest()
        # numpy guarantees that a bit generator's raw numbers are the same in all versions
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64))

    def draw(self) -> float:
        """Return the next number."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53


def draw_token(logits: np.ndarray, unit: float, temperature: float) -> int:
    """Draw a token from logits float32 `[V]`; `unit` is a random number in [0, 1).

    Raises `NbllamaError` if the logits are not finite.
    """
    top = logits.max()
    if not np.isfinite(top):
        raise NbllamaError(NOT_A_NUMBER)
    up_to = np.cumsum(np.exp((logits - top) / np.float32(temperature)), dtype=np.float64)
    at = int(np.searchsorted(up_to, unit * up_to[-1], side="right"))
    return min(at, len(up_to) - 1)


def prompts_at_once(copies: int) -> int:
    """Return the number of prompts, with `copies` answers each, to process at a time."""
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
        Token ids, at least one per prompt.
    streams : sequence of Stream
        One for each answer, beginning with the answers to the first prompt.
    max_new_tokens : int
        Maximum number of tokens per answer.
    adapter : Adapter, optional
        LoRA pairs to apply.
    temperature : float
        Divisor of the logits, above 0.
    check : callable, optional
        Called before each token; it may raise.

    Returns
    -------
    list of list of int
        The answers in the order of the streams. An answer includes the end-of-generation token if
        the model generated one.

    Raises
    ------
    NbllamaError
        The logits are not finite.
    """
    copies = len(streams) // len(prompts)
    if copies * len(prompts) != len(streams) or not copies:
        raise ValueError(
            f"{len(streams)} streams cannot be divided equally among {len(prompts)} prompts"
        )
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
    """Return the memory that `draw_many` requires, in bytes.

    `prompt` and `most` are the lengths of the longest prompt and the longest answer in tokens.
    """
    hp = model.hp
    at_once = min(n_prompts, prompts_at_once(copies))
    rows = at_once * copies
    cache = 2 * len(hp.attention_layers) * rows * (prompt + most) * hp.n_head_kv * hp.head_dim
    # the keys and values of one block are concatenated for attention
    joined = 2 * rows * (prompt + most) * hp.n_head_kv * hp.head_dim
    numbers = cache + joined + rows * (2 * hp.n_vocab + 2 * state_floats(hp))
    return 4 * numbers + forward_bytes(layout(model, adapter, max(rows, at_once * prompt)))
