"""The answers in a chat, their prompts, and the reasons why some answers need separate samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.row import Row
from nbllama.data.tokens import Tokens
from nbllama.text.thoughts import at_end, closer_in, opening

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer

THOUGHTS = "later prompts omit the thoughts of earlier answers"
TOKENS = "earlier answers are tokenised differently in later prompts"
OTHERWISE = "earlier answers are rendered differently in later prompts"


class Answer(NamedTuple):
    """An answer and its prompt, both as text and as token ids, and the answer's index in the chat.

    `text` ends where the answer ends. `own.text` also contains what the template writes after it.
    """

    number: int
    text: str
    before: Tokens
    own: Tokens

    @property
    def prompt(self) -> str:
        """The text of the prompt."""
        return self.before.text


def begins_empty(answer: Answer) -> bool:
    """Return whether an answer starts with an empty thought or with a tag that closes a thought."""
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
    """Return why an answer cannot be trained as part of a later answer's sample."""
    if head.prompt.startswith(answer.prompt + answer.text):
        return TOKENS
    if opening(answer.text) is not None or at_end(answer.prompt) is not None:
        return THOUGHTS
    return OTHERWISE


def row_of(answer: Answer, ids: list[int], trained: np.ndarray, tokenizer: Tokenizer | None) -> Row:
    """Create the sample for an answer.

    If a tokenizer is given, the sample includes the text and the character range of each token.
    """
    if tokenizer is None:
        return Row(np.array(ids, np.int32), trained)
    n = len(answer.prompt)
    before, own = answer.before.placed(tokenizer), answer.own.placed(tokenizer)
    starts = np.concatenate([before.starts, own.starts + n])
    ends = np.concatenate([before.ends, own.ends + n])
    return Row(np.array(ids, np.int32), trained, starts, ends, answer.prompt + answer.text)
