"""Preference losses as training objectives.

After the forward pass of a micro-batch, the token log-probabilities of each answer are summed. The
derivative of the loss with respect to this sum is the weight of the answer's tokens in a second
pass through the output layer, which computes the gradient. The output layer is therefore computed
twice, but the blocks only once, and no logits are stored.

The loss of a step is the weighted sum of the losses of all pairs (or labelled answers), divided by
the number of pairs (or answers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from nbllama.data.batch import Batch, Dataset
from nbllama.data.judged import Judged
from nbllama.data.preferences import JudgedBatch, Preferences
from nbllama.objectives.dpo import dpo
from nbllama.objectives.ipo import ipo
from nbllama.objectives.kto import kto, kto_reference_point
from nbllama.objectives.names import LABELS, OBJECTIVES
from nbllama.objectives.orpo import orpo
from nbllama.objectives.sides import PairLoss, Sides
from nbllama.objectives.simpo import simpo
from nbllama.objectives.supervised import supervised
from nbllama.train.objective import TakesData
from nbllama.train.preference.answers import answer_tokens, log_probabilities, of_samples
from nbllama.train.preference.measures import Measured, Seen

if TYPE_CHECKING:
    from nbllama.train.objective import Check, Passes
    from nbllama.train.preference.reference import Reference


class Numbers(NamedTuple):
    """The numeric options of an objective; see `nbllama.options.finetune.objective`."""

    objective: str
    beta: float
    label_smoothing: float = 0.0
    margin: float = 0.0
    sft_weight: float = 0.0


class Answers(NamedTuple):
    """The answers of a micro-batch, one per sequence; all arrays are `[S]`.

    `policy` and `reference` are the float64 log-probabilities under the two models, and `n` is the
    number of tokens. `good` (bool) says whether an answer is good, and `weight` (float64)
    scales its loss.
    """

    policy: np.ndarray
    reference: np.ndarray
    n: np.ndarray
    good: np.ndarray
    weight: np.ndarray


class Found(NamedTuple):
    """The loss of each pair or labelled answer, and the derivative and reward of each answer.

    All arrays are float64. The derivative is taken with respect to log pi of the whole answer.
    """

    loss: np.ndarray
    slope: np.ndarray
    reward: np.ndarray


def loss_of(numbers: Numbers, answers: Answers, z: float = 0.0) -> Found:
    """Return the losses for a micro-batch; `z` is the reference point for KTO."""
    a, x = answers, numbers
    if OBJECTIVES[x.objective].data == LABELS:
        single = kto(a.policy, a.reference, a.good, beta=x.beta, z=z)
        loss, slope = single.loss, single.d_answer
        if x.sft_weight:
            more, more_slope = supervised(a.policy, a.n, weight=x.sft_weight)
            loss, slope = loss + a.good * more, slope + a.good * more_slope
        return Found(a.weight * loss, a.weight * slope, single.reward)
    sides = Sides(
        a.policy[::2], a.policy[1::2], a.reference[::2], a.reference[1::2], a.n[::2], a.n[1::2]
    )
    pair = _PAIRS[x.objective](sides, x)
    loss, d_chosen = pair.loss, pair.d_chosen
    if x.sft_weight:
        more, more_slope = supervised(sides.chosen, sides.n_chosen, weight=x.sft_weight)
        loss, d_chosen = loss + more, d_chosen + more_slope
    weight = a.weight[::2]
    return Found(
        weight * loss,
        _both(weight * d_chosen, weight * pair.d_rejected),
        _both(pair.reward_chosen, pair.reward_rejected),
    )


_PAIRS: dict[str, Callable[[Sides, Numbers], PairLoss]] = {
    "dpo": lambda s, x: dpo(s, beta=x.beta, label_smoothing=x.label_smoothing),
    "ipo": lambda s, x: ipo(s, beta=x.beta),
    "orpo": lambda s, x: orpo(s, beta=x.beta),
    "simpo": lambda s, x: simpo(
        s, beta=x.beta, margin=x.margin, label_smoothing=x.label_smoothing
    ),
}  # fmt: skip


def _both(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    return np.stack([chosen, rejected], axis=1).reshape(-1)


class SentAnswers(NamedTuple):
    """The values that `PreferenceLoss.loss` needs for the n answers of a batch.

    `judged` contains the judgements of the answers. `reference` is a float64 array `[n]` of
    log-probabilities, or None.
    """

    judged: Judged
    reference: np.ndarray | None


class PreferenceLoss(TakesData):
    """The `Objective` of a run that trains on preferences.

    If `reference` is None, all reference log-probabilities are treated as 0. `history` contains the
    measures of each step, and `point` is the reference point for KTO.
    """

    def __init__(
        self, numbers: Numbers, sets: Sequence[Preferences], reference: Reference | None
    ) -> None:
        self.numbers, self._reference, self._refers = numbers, reference, reference is not None
        self.history: list[dict[str, float]] = []
        self._labels = OBJECTIVES[numbers.objective].data == LABELS
        self.data: Sequence[Dataset] = [s.others for s in sets] if self._moves else ()
        # the mismatched answers require only a forward pass
        self.work = 4 / 3 if self._moves else 1.0
        self.point = 0.0
        self._seen, self._measured = Seen(self._refers), Measured(self._labels)

    @property
    def _moves(self) -> bool:
        """Return whether the loss uses a reference point that must be estimated."""
        return self._labels and self._refers

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Estimate the reference point if the loss is KTO, and return the number of samples."""
        self._measured = Measured(self._labels)
        judged = [cast(JudgedBatch, batch.whole()) for batch in batches]
        if self._moves:
            self.point = self._reference_point(trainer, judged, check)
        width = 1 if self._labels else 2
        return sum(batch.n_sequences for batch in judged) // width

    def _reference_point(
        self, trainer: Passes, batches: Sequence[JudgedBatch], check: Check
    ) -> float:
        policy: list[np.ndarray] = []
        reference: list[np.ndarray] = []
        for batch in batches:
            source = batch.source
            policy += of_samples(
                trainer.model, trainer.bound, trainer.acts, trainer.buffers,
                samples=source.others, rows=batch.rows, most=trainer.limits, check=check,
            )  # fmt: skip
            reference.append(_known(source.others_reference, batch.rows))
        return kto_reference_point(np.concatenate(policy), np.concatenate(reference))

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of per-sample losses; see `Objective.loss`."""
        # shared beginnings are computed once, but the targets are in sample order
        samples = cast(JudgedBatch, batch.whole())
        source, rows = samples.source, samples.rows
        policy = log_probabilities(
            trainer.model, trainer.bound, trainer.acts, trainer.buffers, batch=batch
        )
        reference = np.zeros(len(rows))
        if self._refers:
            reference = _known(source.reference, rows)
        answers = Answers(
            policy, reference, answer_tokens(batch), source.judged.good[rows],
            source.judged.weight[rows],
        )  # fmt: skip
        found = loss_of(self.numbers, answers, self.point)
        self._measured.add(
            answers.policy, reference, answers.n, answers.good, reward=found.reward, z=self.point
        )
        if gradient:
            # The weight of a token is d loss / d log pi, negated because the kernel's loss is -log
            # pi.
            of_tokens = np.repeat(-weight * found.slope, answers.n)
            trainer.model.loss(
                trainer.bound, trainer.acts, trainer.buffers, batch, weight=of_tokens,
                gradient=True,
            )  # fmt: skip
        return float(found.loss.sum())

    def measures(self) -> dict[str, float]:
        """Return the margin, accuracy, log-probabilities and lengths; see `Measured`."""
        return self._measured.numbers()

    def take_part(self) -> Measured:
        """Return the measures accumulated since the last call; see `Objective.take_part`."""
        part, self._measured = self._measured, Measured(self._labels)
        return part

    def add_part(self, part: Measured) -> None:
        """Add the measures of micro-batches.

        If they are added in order, the sums are bit-identical to those of `loss`.
        """
        self._measured.plus(part)

    def sent(self, batch: Batch) -> Batch:
        """Return the batch with only the judgements and reference values that its answers need."""
        samples = cast(JudgedBatch, batch.whole())
        source, rows = samples.source, samples.rows
        reference = source.reference
        own = SentAnswers(source.judged.part(rows), None if reference is None else reference[rows])
        whole = replace(samples, source=cast(Preferences, own), rows=np.arange(len(rows)))
        if batch.tree is None:
            return whole
        return replace(batch, tree=replace(batch.tree, samples=whole))

    def copied(self) -> PreferenceLoss:
        """Return a copy of the loss without its data sets."""
        made = PreferenceLoss(self.numbers, (), None)
        made._refers = self._refers
        return made

    def start(self, trainer: Passes, check: Check, say: Callable[[str], None]) -> None:
        """Load or compute the reference; see `Reference.prepare`."""
        if self._reference is not None:
            self._reference.prepare(trainer, check, say)

    def done(self, say: Callable[[str], None]) -> None:
        """Store the measures of a step, and warn about each problem once per run."""
        self.history.append(self.measures())
        for line in self._seen.step(self._measured):
            say(line)


def _known(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Return the reference values, or zeros if the run is only measuring the time per step."""
    return np.zeros(len(rows)) if values is None else values[rows]
