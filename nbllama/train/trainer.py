"""One training step: batch -> forward -> loss -> backward -> optimiser.

`nbllama.train.run.loop` performs all the steps of a run, including logging and saving.

The gradient of micro-batch m in iteration i is a pure function of (parameters, data, seed, i, m).
`nbllama.train.blocks.compute` defines the order in which gradients are summed. The loss of an
iteration is the mean over the trained tokens in all its micro-batches. Batch size 4 with one
accumulation step is therefore equivalent to batch size 1 with four accumulation steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from nbllama.data.batch import Batch, Dataset
from nbllama.data.feed import Feed
from nbllama.data.order import Position
from nbllama.data.shared import share
from nbllama.errors import Diverged
from nbllama.kernels.own_cores import own_cores
from nbllama.kernels.turns import new_turn, one_at_a_time
from nbllama.lora.pairs import Adapter
from nbllama.model.bound import Bound
from nbllama.model.passes import Model, Trunk
from nbllama.ops.dropout import dropout_for
from nbllama.opt.arrays import check_finite
from nbllama.opt.optimiser import Optimiser
from nbllama.opt.schedule import Schedule
from nbllama.train.blocks.compute import Here, Steps, sum_of
from nbllama.train.limits import kept_blocks, limits
from nbllama.train.objective import Objective, Task, TokenLoss
from nbllama.train.validation import batches

MOST_SKIPPED = 3  # a run ends after this many consecutive steps without a finite loss and gradient


class StopRequested(Exception):
    """Raised between layers if the run should stop; the unfinished step is discarded."""


class Evaluation(NamedTuple):
    """The loss and token counts of one iteration; `Trainer.gradients` contains the gradient.

    `trained` is the number of trained tokens or answers over which the loss is averaged
    (`Objective.before`). `after` is the position in the data after the iteration's samples.
    """

    loss: float
    tokens: int
    trained: int
    n_samples: int
    after: Position
    seconds: float
    computed: int  # excluding tokens that a sample shares with an earlier sample in its batch


class StepResult(NamedTuple):
    """The result of one iteration.

    `loss` is in nats per trained token, and `lr` is the learning rate. If `skipped` is true, the
    update was skipped, and all parameters are unchanged.
    """

    iteration: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    trained: int
    seconds: float
    skipped: bool
    computed: int


class Trainer:
    """A model, an adapter, its optimiser, and a position in the data; `step` runs one iteration.

    `bound` is the adapter bound to the model, and `acts` and `buffers` are the memory for the
    passes. `trunk`, if set, stores the output of the frozen blocks below the lowest pair
    (`nbllama.train.trunk`). Several threads can share a trainer, because calls are serialised.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        opt: Optimiser,
        dataset: Dataset,
        *,
        rates: Schedule,
        feed: Feed,
        batch: int,
        grad_acc: int,
        checkpointing: bool,
        iteration: int = 0,
        position: Position | None = None,
        old_schedule: bool = False,
        probability_floor: float = 0.0,
        activation_memory: int = 0,
        dropout: float = 0.0,
        seed: int = 0,
        validation: Dataset | None = None,
        objective: Objective | None = None,
        share_prompts: bool = False,
        block: int = 0,
    ) -> None:
        """Allocate the memory for training.

        `old_schedule` says whether to use the learning rate of the previous update, like the old
        tool. `probability_floor` is the `floor` of `ops.cross_entropy`. `activation_memory` is the
        number of bytes for activations, which determines how many blocks are computed twice; if it
        is 0, `checkpointing` decides whether all or none are. `dropout` is the probability p of
        `ops.dropout`, whose masks are derived from `seed`. `validation` contains the data for
        `validation_loss`. `objective` is the loss to minimise; None means the cross-entropy of each
        token. `share_prompts` says whether to compute the common beginnings of samples in a
        micro-batch only once (`data.shared`); it has no effect with dropout, or if blocks carry a
        state. `block` is the `size` for `train.blocks.compute.split`.

        Raises `UsageError` if `activation_memory` is too small even if every block is checkpointed.
        """
        self.turn = new_turn()
        self.model, self.adapter, self.opt, self.dataset = model, adapter, opt, dataset
        self.rates, self.feed, self.batch, self.grad_acc = rates, feed, batch, grad_acc
        self.checkpointing = checkpointing
        self.old_schedule = old_schedule
        self.dropout, self.seed = dropout, seed
        self.iteration = iteration
        self.position = Position() if position is None else position
        self.samples_seen = self.tokens_seen = 0
        self.shares = share_prompts and not dropout and not model.hp.mixers
        self.limits = limits(dataset, batch, feed.wraps, self.shares)
        self.objective: Objective = objective or TokenLoss(probability_floor)
        self._validation: list[Batch] = []
        if validation is not None:
            self._add_validation(validation)
        for more in self.objective.data:
            self._make_room(more)
            # batches of this data are computed without sharing their beginnings
            most = max(self.limits.tokens, self.limits.computed)
            self.limits = self.limits._replace(computed=most, keys=max(most, self.limits.keys))
        self.bound = Bound(model, adapter, trained=True)
        self.kept, drops = 0, dropout > 0
        if activation_memory:
            self.checkpointing = True
            self.kept = kept_blocks(model, adapter, self.limits, activation_memory, dropout=drops)
        self.acts = model.activations(
            adapter,
            self.limits.computed,
            self.limits.trained,
            checkpointing=self.checkpointing,
            kept=self.kept,
            dropout=drops,
        )
        self.buffers = model.loss_buffers(adapter, self.limits.trained)
        self.trunk: Trunk | None = None
        self.steps: Steps = Here(block)
        self._skipped_in_a_row = 0

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients from the last evaluation, by parameter name and before clipping."""
        return self.bound.grads

    @one_at_a_time
    def step(
        self,
        check: Callable[[], None] | None = None,
        seen: Callable[[Evaluation], None] | None = None,
    ) -> StepResult:
        """Perform one iteration: `evaluate`, then `update`.

        Before the update, `seen` is called with the evaluation. If `seen` raises, the update is
        skipped.
        """
        found = self.evaluate(check)
        if seen is not None:
            seen(found)
        return self.update(found)

    @one_at_a_time
    def evaluate(self, check: Callable[[], None] | None = None) -> Evaluation:
        """Compute the loss and gradient of the next samples; `check` may raise between layers."""
        start = time.perf_counter()
        batches, after, n_samples = self.feed.take(self.position, self.batch, self.grad_acc)
        batches = self.objective.drawn(self, batches, check)
        trained = self.objective.before(self, batches, check)
        tokens = sum(b.n_tokens for b in batches)
        batches = self.laid_out(batches)
        total = self.steps.evaluate(self, batches, trained, check)
        seconds = time.perf_counter() - start
        computed = sum(b.n_tokens for b in batches)
        return Evaluation(total / trained, tokens, trained, n_samples, after, seconds, computed)

    def laid_out(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches as the passes need them, with shared beginnings if enabled."""
        return [share(batch) for batch in batches] if self.shares else batches

    def _add_validation(self, data: Dataset) -> None:
        """Build validation batches from all samples in `data`, and make room for each sample."""
        self._make_room(data)
        numbers = batches(data.lengths(), self.limits.tokens, self.limits.trained)
        self._validation = self.laid_out([data.batch(part) for part in numbers])
        own = self.limits
        self.limits = own._replace(
            computed=max(own.computed, *(b.n_tokens for b in self._validation)),
            keys=max(own.keys, *(b.whole().n_tokens for b in self._validation)),
        )

    def _make_room(self, data: Dataset) -> None:
        """Raise the limits, if necessary, so that any single sample in `data` fits."""
        own, other = self.limits, limits(data, 1, shares=self.shares)
        self.limits = own._replace(
            tokens=max(own.tokens, other.tokens),
            trained=max(own.trained, other.trained),
            longest=max(own.longest, other.longest),
        )

    @one_at_a_time
    def validation_loss(self, check: Callable[[], None] | None = None) -> float:
        """Return the mean validation loss, in nats per trained token, without side effects."""
        trained = self.objective.before(self, self._validation, check)
        return sum_of(self.steps.losses(self, self._validation, check)) / trained

    def each(self, tasks: Sequence[Task], check: Callable[[], None] | None) -> list[Any]:
        """Compute tasks, possibly on other machines, and return their results in the same order."""
        return self.steps.each(self, tasks, check)

    def set_dropout(self, micro: int) -> None:
        """Set the dropout masks, if any, for micro-batch `micro` of the next iteration."""
        if self.dropout:
            self.bound.dropout = dropout_for(self.dropout, self.seed, self.iteration, micro)

    def factor(self, iteration: int) -> float:
        """Return the learning-rate factor for update number `iteration`, counted from 1."""
        return self.rates.factor(iteration - 1 if self.old_schedule else iteration)

    @one_at_a_time
    @own_cores()
    def update(self, found: Evaluation) -> StepResult:
        """Perform one optimiser step with the gradient of the last evaluation, `found`.

        If the loss or the gradient is not finite, no parameters are changed, but the iteration is
        still counted.
        """
        start = time.perf_counter()
        factor = self.factor(self.iteration + 1)
        grad_norm, skipped = math.nan, True
        good = not check_finite(self.opt.m) and not check_finite(self.opt.v)
        if good and math.isfinite(found.loss):
            with suppress(FloatingPointError):
                grad_norm = self.opt.step(self.bound.grads, factor).grad_norm
                skipped = False
        if skipped:
            self.opt.iteration += 1  # kept equal to the number of iterations
        else:
            self.bound.refresh()
        epoch = self.position.epoch
        self.iteration += 1
        self.tokens_seen += found.tokens
        self.position = found.after
        self.samples_seen += found.n_samples
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        return StepResult(
            self.iteration, epoch, found.loss, self.opt.alpha * factor, grad_norm, found.tokens,
            found.trained, found.seconds + time.perf_counter() - start, skipped, found.computed,
        )  # fmt: skip

    @one_at_a_time
    def pass_over_next(self, grad_acc: int) -> None:
        """Skip the next `grad_acc` micro-batches."""
        taken = self.feed.take(self.position, self.batch, grad_acc)
        self.position = taken.after
        self.samples_seen += taken.n_samples

    def raise_if_diverged(self) -> None:
        """Raise `Diverged` if all of the last MOST_SKIPPED steps were skipped."""
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise Diverged(
                f"the loss or the gradient was not finite in {MOST_SKIPPED} iterations in a row "
                f"(last: {self.iteration}); the files from the last save are intact; resume from "
                "them with a lower --adam-alpha"
            )
