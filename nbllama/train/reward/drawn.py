"""Draw and score the answers for a step, and build micro-batches with advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.batch import Batch
from nbllama.data.prompts import PromptBatch, Question, row_of
from nbllama.generation.drawing import Stream, draw_many
from nbllama.objectives.grpo import advantages
from nbllama.text import StreamDecoder
from nbllama.train.reward.scorer import Failed

if TYPE_CHECKING:
    from nbllama.model.passes import Model
    from nbllama.text.tokenizer import Tokenizer
    from nbllama.train.objective import Check, Computing, Drawing
    from nbllama.train.reward.scorer import Scorer


class Answer(NamedTuple):
    """A drawn answer: its token ids, text and reward.

    If `cut` is true, drawing stopped before the model ended the answer.
    """

    ids: list[int]
    text: str
    cut: bool
    reward: float | Failed

    @property
    def shown(self) -> str:
        """Return the text for display; a truncated text ends with a complete character and "…"."""
        if not self.cut:
            return self.text
        return self.text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip() + "\N{HORIZONTAL ELLIPSIS}"


class GroupOf(NamedTuple):
    """The answers to one prompt, and their advantages (0 for answers without a reward)."""

    question: Question
    answers: list[Answer]
    advantages: np.ndarray

    @property
    def rewards(self) -> np.ndarray:
        """Return a float64 array with the rewards of all answers that have one."""
        return np.array([a.reward for a in self.answers if not isinstance(a.reward, Failed)])

    @property
    def same(self) -> bool:
        """Return whether all rewards are equal, in which case all advantages are 0."""
        return not self.advantages.any()


@dataclass(frozen=True, kw_only=True)
class DrawnBatch(Batch):
    """A batch of drawn answers.

    `advantage` is float64 `[S]`, with one value per sequence. `reference` is float64 `[M]` and is
    filled in later with the log-probabilities of the trained tokens under the reference.
    """

    advantage: np.ndarray
    reference: np.ndarray


@contextmanager
def unwatched(model: Model) -> Iterator[None]:
    """Hide passes from `model.watch`, which should observe only training passes."""
    watch, model.watch = model.watch, None
    try:
        yield
    finally:
        model.watch = watch


@dataclass(frozen=True)
class Draw:
    """A task that draws the answers to the prompts of a batch, group by group.

    `keys` contains the random seeds for each answer, and `most` is the maximum number of tokens per
    answer.
    """

    prompts: list[list[int]]
    keys: list[tuple[int, ...]]
    most: int
    temperature: float

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens processed if all answers have the maximum length."""
        return sum(map(len, self.prompts)) + len(self.keys) * self.most

    def run(self, work: Computing, check: Check) -> list[list[int]]:
        """Draw the answers."""
        streams = [Stream(*key) for key in self.keys]
        with unwatched(work.model):
            return draw_many(
                work.model, self.prompts, streams, self.most, adapter=work.adapter,
                temperature=self.temperature, check=check,
            )  # fmt: skip


def draw_of(trainer: Drawing, batch: PromptBatch, temperature: float) -> Draw:
    """Return a task that draws the answers to the prompts in a batch.

    Each answer has its own stream of random numbers, derived from the seed, the iteration, the
    prompt, and the answer's index in its group.
    """
    source = batch.source
    keys: list[tuple[int, ...]] = [
        (trainer.seed, trainer.iteration, number, copy)
        for number in batch.numbers
        for copy in range(source.group)
    ]
    prompts = [source.questions[i].ids.tolist() for i in batch.numbers]
    return Draw(prompts, keys, source.most, temperature)


def scored(
    tokenizer: Tokenizer, question: Question, drawn: Sequence[list[int]], scorer: Scorer,
    *, check: Check,
) -> GroupOf:  # fmt: skip
    """Score the answers to a prompt."""
    answers = []
    for ids in drawn:
        cut = ids[-1] not in tokenizer.eog_ids
        said = text_of(tokenizer, ids if cut else ids[:-1], question.chat)
        reward = scorer.score(question.prompt, said, question.record, check)
        answers.append(Answer(ids, said, cut, reward))
    good = [i for i, a in enumerate(answers) if not isinstance(a.reward, Failed)]
    group = GroupOf(question, answers, np.zeros(len(answers)))
    group.advantages[good] = advantages(group.rewards)
    return group


def text_of(tokenizer: Tokenizer, ids: Sequence[int], chat: bool) -> str:
    """Return the text of an answer as the server would return it."""
    decoder = StreamDecoder(tokenizer, at_start=chat)
    return "".join(map(decoder.push, ids)) + decoder.flush()


def batch_of(groups: Sequence[GroupOf], *, every: bool) -> DrawnBatch | None:
    """Return the answers that have a reward as a batch, or None if there are none.

    If `every` is true, answers with an advantage of 0 are included. Their gradient comes only from
    the KL term.
    """
    rows, values = [], []
    for group in groups:
        for answer, advantage in zip(group.answers, group.advantages, strict=True):
            if isinstance(answer.reward, Failed) or not (every or advantage):
                continue
            rows.append(row_of(group.question.ids, np.array(answer.ids, np.int32)))
            values.append(advantage)
    if not rows:
        return None
    made = Batch.from_rows(rows)
    return DrawnBatch(**vars(made), advantage=np.array(values), reference=np.zeros(made.n_trained))
