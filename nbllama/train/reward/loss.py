"""GRPO as a training objective.

A step draws answers for all its micro-batches with the current adapter, scores the answers, and
then performs one update. The probability ratio in the loss is therefore 1
(`nbllama.objectives.grpo`).

After the forward pass of a micro-batch, a second pass through the output layer computes the
gradient. The weight of each token in that pass is the derivative of the loss with respect to the
token's log-probability, as for preferences (`nbllama.train.preference.loss`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from nbllama.data.batch import Batch, Dataset
from nbllama.data.prompts import PromptBatch, Prompts
from nbllama.errors import NbllamaError, shown
from nbllama.generation.batch import Group
from nbllama.generation.drawing import drawing_bytes, prompts_at_once
from nbllama.model.activations import activation_bytes
from nbllama.model.bound import Bound
from nbllama.model.passes import layout
from nbllama.objectives.grpo import grpo
from nbllama.train.preference.answers import answer_tokens, token_log_probabilities
from nbllama.train.preference.reference import same_sizes
from nbllama.train.reward.drawn import (
    DrawnBatch,
    GroupOf,
    batch_of,
    draw_of,
    scored,
    unwatched,
)  # fmt: skip
from nbllama.train.reward.measures import KL, RewardMeasures, two_of
from nbllama.train.reward.scorer import Failed

if TYPE_CHECKING:
    from nbllama.lora.pairs import Adapter
    from nbllama.model.activations import Activations
    from nbllama.ops.loss import LossBuffers
    from nbllama.train.objective import Check, Computing, Drawing, Passes
    from nbllama.train.reward.scorer import Scorer

FIRST_FAILED = 8  # the run ends if this many rewards fail before the first success
_TIMED = 4  # number of tokens to draw for the timing


class RewardNumbers(NamedTuple):
    """The numeric options of the objective; see `nbllama.options.finetune.rewards`."""

    beta: float
    temperature: float = 1.0


class RewardLoss:
    """The `Objective` of a run that trains on rewards.

    `reference` is the adapter of the reference model, or None for the base model; it is not used if
    `beta` is 0. `history` contains the measures of each step.
    """

    data: Sequence[Dataset] = ()
    point = 0.0

    def __init__(
        self, numbers: RewardNumbers, scorer: Scorer | None, reference: Adapter | None
    ) -> None:
        self.numbers, self._scorer, self._reference = numbers, scorer, reference
        self._refers = numbers.beta > 0
        self.history: list[dict[str, float]] = []
        # the reference requires only a forward pass
        self.work = 4 / 3 if self._refers else 1.0
        self._measured, self._last = (RewardMeasures(self._refers) for _ in range(2))
        self._n_tokens, self._failed, self._any_good = 0, 0, False
        self._say: Callable[[str], None] | None = None
        self._memory: tuple[Activations, LossBuffers] | None = None  # if the reference ranks differ

    def start(self, trainer: Passes, check: Check, say: Callable[[str], None]) -> None:
        """Store `say`, which reports failed rewards."""
        self._say = say

    def drawn(self, trainer: Drawing, batches: list[Batch], check: Check) -> list[Batch]:
        """Draw and score answers to the prompts of `batches`, and return them as micro-batches.

        Answers without a reward are left out. Raises `NbllamaError` if too many rewards fail before
        the run's first success.
        """
        measured = self._measured = RewardMeasures(self._refers)
        start, tokenizer = time.perf_counter(), trainer.model.tokenizer
        parts, self._n_tokens = [], 0
        prompts = [cast(PromptBatch, batch) for batch in batches]
        temperature = self.numbers.temperature
        tasks = [draw_of(trainer, batch, temperature) for batch in prompts]
        answers: list[list[list[int]]] = trainer.each(tasks, check)
        for batch, found in zip(prompts, answers, strict=True):
            size, groups = batch.source.group, []
            for i, number in enumerate(batch.numbers):
                question, own = batch.source.questions[number], found[i * size : (i + 1) * size]
                groups.append(scored(tokenizer, question, own, self._scores, check=check))
                self._note_failures(groups[-1])
            measured.groups += groups
            self._n_tokens += sum(
                len(a.ids) for g in groups for a in g.answers if not isinstance(a.reward, Failed)
            )
            if (made := batch_of(groups, every=self._refers)) is not None:
                parts.append(made)
        measured.seconds = time.perf_counter() - start
        self._report_failures()
        if self._refers:
            self._compute_reference(trainer, parts, check)
        return list(parts)

    @property
    def _scores(self) -> Scorer:
        if self._scorer is None:
            raise ValueError("a copy of the objective cannot score answers")
        return self._scorer

    def _note_failures(self, group: GroupOf) -> None:
        """Raise `NbllamaError` if too many rewards failed before the first success of the run."""
        for answer in group.answers:
            if not isinstance(answer.reward, Failed):
                self._any_good = True
            elif not self._any_good:
                self._failed += 1
                if self._failed >= FIRST_FAILED:
                    raise NbllamaError(
                        f"the first {FIRST_FAILED} rewards of this run all failed "
                        f"({group.question.place}: {shown(answer.reward.reason, 300)}); correct the"
                        " reward function"
                    )

    def _report_failures(self) -> None:
        failed = self._measured.failed
        if failed and self._say is not None:
            group, first = failed[0]
            self._say(
                f"warning: {len(failed)} of {len(self._measured.answers)} rewards failed, and "
                f"their answers are skipped; first: {group.question.place}: "
                f"{shown(first.reason, 300)}"
            )

    def _compute_reference(
        self, trainer: Drawing, parts: Sequence[DrawnBatch], check: Check
    ) -> None:
        """Compute and store the log-probabilities under the reference for all micro-batches."""
        tasks = [UnderReference(batch) for batch in trainer.laid_out(list(parts))]
        for part, values in zip(parts, trainer.each(tasks, check), strict=True):
            part.reference[:] = values

    def under_reference(self, work: Passes, batch: Batch, check: Check) -> np.ndarray:
        """Return the trained tokens' log-probabilities under the reference (float64 `[M]`)."""
        model, most, adapter = work.model, work.limits, self._reference
        acts, buffers = work.acts, work.buffers
        if adapter is not None and not same_sizes(adapter, work.adapter):
            if self._memory is None:
                self._memory = (
                    model.activations(adapter, most.computed, most.trained, checkpointing=True),
                    model.loss_buffers(adapter, most.trained),
                )
            acts, buffers = self._memory
        bound = Bound(model, adapter)
        with unwatched(model):
            model.forward(bound, acts, batch, check)
            return token_log_probabilities(model, bound, acts, buffers, batch=batch)

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Return the number of tokens in all answers that have a reward, or 1 if there are none."""
        return max(1, self._n_tokens)

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of per-token losses; see `Objective.loss`."""
        n = answer_tokens(batch)
        policy = token_log_probabilities(
            trainer.model, trainer.bound, trainer.acts, trainer.buffers, batch=batch
        )
        whole = batch.whole()
        advantage, reference = np.ones(len(n)), policy
        if isinstance(whole, DrawnBatch):  # otherwise, only the duration is being measured
            advantage = whole.advantage
            reference = whole.reference if self._refers else policy
        found = grpo(policy, policy, reference, np.repeat(advantage, n), beta=self.numbers.beta)
        self._measured.add_kl(found.kl)
        if gradient:
            # the kernel's per-token loss is -log pi, hence the sign
            trainer.model.loss(
                trainer.bound, trainer.acts, trainer.buffers, batch, weight=-weight * found.slope,
                gradient=True,
            )  # fmt: skip
        return float(found.loss.sum())

    def measures(self) -> dict[str, float]:
        """Return the rewards, KL and answer lengths of the step; see `RewardMeasures.numbers`."""
        return self._measured.numbers()

    def take_part(self) -> KL:
        """Return the KL accumulated since the last call; see `Objective.take_part`."""
        return self._measured.take_kl()

    def add_part(self, part: KL) -> None:
        """Add the KL of a micro-batch."""
        self._measured.plus_kl(part)

    def sent(self, batch: Batch) -> Batch:
        """Return the batch unchanged, because it contains everything that `loss` requires."""
        return batch

    def copied(self) -> RewardLoss:
        """Return a copy without a reward function."""
        return RewardLoss(self.numbers, None, self._reference)

    def done(self, say: Callable[[str], None]) -> None:
        """Store the measures of a step."""
        self.history.append(self.measures())
        self._last = self._measured

    def samples(self) -> tuple[dict[str, str], ...]:
        """Return two answers from the last step, with their rewards."""
        return tuple(
            {
                "prompt": prompt_text(group.question.prompt),
                "answer": a.shown,
                "reward": "failed" if isinstance(a.reward, Failed) else f"{a.reward:g}",
            }
            for group, a in two_of(self._last.groups)
        )

    def more_bytes(self, trainer: Drawing) -> int:
        """Return the memory in bytes for drawing, and for a reference with different ranks."""
        source = cast(Prompts, trainer.dataset)
        n = min(trainer.batch, source.n_samples)
        found = drawing_bytes(
            trainer.model, trainer.adapter, n, source.group,
            prompt=source.longest_prompt(), most=source.most,
        )  # fmt: skip
        adapter, most = self._reference, trainer.limits
        if adapter is not None and not same_sizes(adapter, trainer.adapter):
            sizes = layout(trainer.model, adapter, most.computed, most.trained)
            found += activation_bytes(sizes, checkpointing=True)
        return found

    def more_seconds(self, trainer: Drawing) -> float:
        """Measure how many seconds it takes to draw the answers of a step.

        All answers are assumed to have the maximum length.
        """
        source, ends = cast(Prompts, trainer.dataset), trainer.model.tokenizer.eog_ids
        n = min(trainer.batch, source.n_samples)
        part = [q.ids.tolist() for q in source.questions[: min(n, prompts_at_once(source.group))]]
        plain = next(i for i in range(trainer.model.hp.n_vocab) if i not in ends)
        times = []
        for most in (2, 1, 1 + _TIMED):  # the first round compiles kernels
            with unwatched(trainer.model):
                start = time.perf_counter()
                group = Group(trainer.model, trainer.adapter, part, most, copies=source.group)
                group.run(lambda rows, logits: [plain] * len(rows))
                times.append(time.perf_counter() - start)
        of_token = max(0.0, times[2] - times[1]) / _TIMED
        rounds = trainer.grad_acc * n / len(part)
        return rounds * (times[1] + of_token * (source.most - 1))


@dataclass(frozen=True)
class UnderReference:
    """A task that computes the log-probabilities of a batch under the objective's reference."""

    batch: Batch

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens processed."""
        return self.batch.n_tokens

    def run(self, work: Computing, check: Check) -> np.ndarray:
        """Compute the values; see `RewardLoss.under_reference`."""
        return cast(RewardLoss, work.objective).under_reference(work, self.batch, check)


def prompt_text(prompt: object) -> str:
    """Return a prompt as a string; for a chat, the text of its last message."""
    if isinstance(prompt, list):
        return str(prompt[-1].get("content") or "")
    return str(prompt)
