"""Questions from the data that the model answers before and after a run.

The answers do not affect the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllama.data import Packed, Samples
from nbllama.data.preferences import Preferences
from nbllama.generation.batch import generate_many
from nbllama.text import beginning

if TYPE_CHECKING:
    from nbllama.data import Dataset
    from nbllama.lora.pairs import Adapter
    from nbllama.model.passes import Model
    from nbllama.text.tokenizer import Tokenizer

LONGEST_PROMPT = 256  # tokens
LONGEST_ANSWER = 48
TRAINED, HELD_OUT = "trained", "held out"
_ROLES = ("user", "human", "assistant", "model", "system", "tool")


@dataclass
class Asked:
    """A question, the expected answer from the data, and the model's answers.

    `kind` is `TRAINED` or `HELD_OUT`. `wanted` is the expected answer. All answers are truncated to
    the maximum answer length; a truncated answer ends with "…".
    """

    kind: str
    question: str
    wanted: str
    prompt: list[int]
    most: int
    before: str = ""
    after: str = ""

    @property
    def right(self) -> bool:
        """Return whether the answer after the run matches the expected one."""
        return self.after.strip() == self.wanted.strip()

    def row(self) -> dict[str, Any]:
        """Return a log row for the question."""
        names = ("kind", "question", "wanted", "before", "after", "right")
        return {name: getattr(self, name) for name in names}


def find_questions(
    tokenizer: Tokenizer, data: Dataset, validation: Dataset | None, number: int
) -> list[Asked]:
    """Choose up to `number` evenly spaced questions from each of the two data sets.

    If a record has several answers, the last one is used. Records whose prompt is too long or
    missing are skipped.
    """
    found = _questions(tokenizer, data, TRAINED, number)
    if validation is not None:
        found += _questions(tokenizer, validation, HELD_OUT, number)
    return found


def _questions(tokenizer: Tokenizer, data: Dataset, kind: str, number: int) -> list[Asked]:
    samples = data.samples if isinstance(data, Packed | Preferences) else data
    if not isinstance(samples, Samples) or not number:
        return []
    found: list[Asked] = []
    seen: set[tuple[int, ...]] = set()
    # for preferences, use only the good answers
    rows = np.arange(samples.n_samples)
    if samples.judged is not None:
        rows = rows[samples.judged.good]
    n = len(rows)
    step = max(1, n // number)
    order = [*range(0, n, step)]
    order += [i for i in range(min(n, 50 * number)) if i % step]  # in case prompts are too long
    for i in rows[order].tolist():
        one = _question(tokenizer, samples, i, kind)
        if one is not None and tuple(one.prompt) not in seen:
            seen.add(tuple(one.prompt))
            found.append(one)
        if len(found) == number:
            break
    return found


def _question(tokenizer: Tokenizer, samples: Samples, i: int, kind: str) -> Asked | None:
    """Return the last answer of sample `i` with its prompt, or None if either is unsuitable."""
    part = slice(int(samples.offsets[i]), int(samples.offsets[i + 1]))
    ids, trained = samples.ids[part], samples.trained[part]
    on = np.flatnonzero(trained)
    if not len(on) or on[0] == 0:
        return None
    first = int(on[-1])
    while trained[first - 1]:
        first -= 1
    answer = [int(t) for t in ids[first : on[-1] + 1] if int(t) not in tokenizer.eog_ids]
    if not 0 < first <= LONGEST_PROMPT or not answer:
        return None
    most = min(LONGEST_ANSWER, len(answer) + 4)
    wanted = beginning(tokenizer, answer, most)
    prompt = [int(t) for t in ids[:first]]
    return Asked(kind, question_text(tokenizer, prompt), wanted, prompt, most)


def question_text(tokenizer: Tokenizer, prompt: list[int]) -> str:
    """Return the question in a prompt, without the text that the chat template adds.

    The question is the last string between control tokens that is not just a role name.
    """
    stretches: list[list[int]] = [[]]
    for token in prompt:
        if tokenizer.token_bytes(token, special=False):
            stretches[-1].append(token)
        else:
            stretches.append([])
    for stretch in reversed(stretches):
        lines = tokenizer.decode(stretch).strip().split("\n")
        if lines[0].strip().lower() in _ROLES:
            lines = lines[1:]
        if text := "\n".join(lines).strip():
            return text
    return tokenizer.decode(prompt).strip()


def answer(
    questions: list[Asked], model: Model, adapter: Adapter, check: Callable[[], None]
) -> list[str]:
    """Answer all questions by greedy decoding.

    `check` is called before each token and may raise.
    """
    if not questions:
        return []
    most = 1 + max(q.most for q in questions)  # one more token shows whether an answer is truncated
    said = generate_many(model, [q.prompt for q in questions], most, adapter, check=check)
    return [beginning(model.tokenizer, ids, q.most) for q, ids in zip(questions, said, strict=True)]
