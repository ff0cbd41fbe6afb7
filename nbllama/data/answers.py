"""An answer of a chat behind its prompt, and why it cannot share the sample of a later one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.data.row import Row
from nbllama.data.spans import Placed
from nbllama.text.thoughts import at_end, closer_in, opening

THOUGHTS = "earlier answers lose their thoughts in later prompts"
TOKENS = "earlier answers have other token ids in later prompts"
OTHERWISE = "earlier answers stand otherwise in later prompts"


class Answer(NamedTuple):
    """An answer's number in the chat, its prompt and itself as text and as ids."""

    number: int
    prompt: str
    text: str
    placed_prompt: Placed
    placed: Placed

    @property
    def ids(self) -> np.ndarray:
        """Token ids of the prompt and the answer, int32 [n]."""
        return np.concatenate([self.placed_prompt.ids, self.placed.ids])


def begins_empty(answer: Answer) -> bool:
    """Whether an answer begins with an empty thought, or closes at once the one of its prompt."""
    if not answer.text.lstrip().startswith(("<", "[", "\u25c1")):
        return False
    own = opening(answer.text)
    if own is not None:
        return own.closed and not own.inner.strip()
    held = at_end(answer.prompt)
    mark = closer_in(answer.text)
    if mark is None or answer.text[: mark.start()].strip():
        return False
    return held is None or not held.closed


def why_apart(answer: Answer, head: Answer) -> str:
    """Why an answer cannot be trained in the sample of a later one."""
    if head.prompt.startswith(answer.prompt + answer.text):
        return TOKENS
    if opening(answer.text) is not None or at_end(answer.prompt) is not None:
        return THOUGHTS
    return OTHERWISE


def row_of(answer: Answer, ids: np.ndarray, trained: np.ndarray) -> Row:
    """Make a sample of an answer; `ids`, `trained`: of the prompt and the answer together."""
    n = len(answer.prompt)
    starts = np.concatenate([answer.placed_prompt.starts, answer.placed.starts + n])
    ends = np.concatenate([answer.placed_prompt.ends, answer.placed.ends + n])
    return Row(ids, trained, starts, ends, answer.prompt + answer.text)
