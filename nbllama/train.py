"""The training loop: batch -> forward -> loss -> backward -> step -> log -> save.

The gradient of micro-batch m of iteration i is a pure function of (parameters, data, seed, i, m);
gradients are summed in ascending m. The loss of an iteration is the sum over all trained tokens of
all its micro-batches, divided by their number: batch 4 with one accumulation equals batch 1 with
four.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from nbllama.activations import Activations
from nbllama.data.batch import Batch, Dataset
from nbllama.data.order import Order, Position
from nbllama.errors import Diverged
from nbllama.lora import Adapter
from nbllama.model import Bound, Model
from nbllama.opt import AdamW, check_finite, schedule

MOST_SKIPPED = 3  # steps in a row without a finite loss and gradient that end a run
PROBE_TOKENS = 8  # more than the few-token path takes, so that the packed kernels are compiled


class StopRequested(Exception):
    """Raised between layers when the run was asked to stop: the unfinished step is dropped."""


class Schedule(NamedTuple):
    """Arguments of `nbllama.opt.schedule`."""

    warmup: int
    cos_decay_steps: int
    cos_decay_min: float
    cos_decay_restart: float
    enable_restart: bool
    min_ratio: float


class StepResult(NamedTuple):
    """One iteration. `loss` is nats per trained token, `lr` the learning rate; `skipped`:
    nothing was changed.
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


class Limits(NamedTuple):
    """Largest micro-batch of a data set (tokens, trained positions), its longest sequence, and the
    means of a sample.
    """

    tokens: int
    trained: int
    longest: int
    mean_tokens: float
    mean_trained: float


def limits(dataset: Dataset, batch: int) -> Limits:
    """Bounds for micro-batches of `batch` samples, whatever their order."""
    most = min(batch, dataset.n_samples)
    if dataset.kind == "raw":
        size = dataset.n_tokens(0)
        return Limits(size * most, size * most, size, size, size)
    every = range(dataset.n_samples)
    tokens = sorted((dataset.n_tokens(i) for i in every), reverse=True)
    trained = sorted((dataset.n_trained(i) for i in every), reverse=True)
    means = (sum(counts) / dataset.n_samples for counts in (tokens, trained))
    return Limits(sum(tokens[:most]), sum(trained[:most]), tokens[0], *means)


class Trainer:
    """A model, an adapter, its optimiser, and a place in the data; `step` moves all of them on
    by one iteration.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        opt: AdamW,
        dataset: Dataset,
        rates: Schedule,
        *,
        batch: int,
        grad_acc: int,
        seed: int,
        checkpointing: bool,
        iteration: int = 0,
        position: Position | None = None,
    ) -> None:
        self.model, self.adapter, self.opt, self.dataset = model, adapter, opt, dataset
        self.rates, self.batch, self.grad_acc = rates, batch, grad_acc
        self.checkpointing = checkpointing
        self.iteration = iteration
        self.position = Position() if position is None else position
        self.samples_seen = self.tokens_seen = 0
        self.limits = limits(dataset, batch)
        self._order = Order(dataset.n_samples, seed)
        self._bound = Bound(model, adapter, trained=True)
        self._acts = model.activations(
            adapter, self.limits.tokens, self.limits.trained, checkpointing=checkpointing
        )
        self._buffers = model.loss_buffers(adapter, self.limits.trained)
        self._skipped_in_a_row = 0

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """Gradients of the last step by parameter name, before clipping."""
        return self._bound.grads

    def _micro_batches(self) -> tuple[list[Batch], Position]:
        taken, after = self._order.take(self.position, self.batch * self.grad_acc)
        parts = range(0, len(taken), self.batch)
        return [self.dataset.batch(taken[i : i + self.batch].tolist()) for i in parts], after

    def step(self, check: Callable[[], None] | None = None) -> StepResult:
        """One iteration. `check` is called between layers and may raise `StopRequested`: nothing
        has changed then.

        Raises `Diverged` after MOST_SKIPPED iterations in a row whose loss or gradient is not
        finite.
        """
        start = time.perf_counter()
        batches, after = self._micro_batches()
        trained = sum(b.n_trained for b in batches)
        tokens = sum(b.n_tokens for b in batches)
        self._bound.zero_grads()
        total = 0.0
        for batch in batches:
            self.model.forward(self._bound, self._acts, batch, check)
            total += self.model.loss(
                self._bound, self._acts, self._buffers, batch, 1.0 / trained, gradient=True
            )
            if not math.isfinite(total):
                break
            self.model.backward(self._bound, self._acts, batch, check)
        loss = total / trained
        factor = schedule(self.iteration + 1, *self.rates)
        grad_norm, skipped = math.nan, True
        good = not check_finite(self.opt.m) and not check_finite(self.opt.v)
        if good and math.isfinite(loss):
            with suppress(FloatingPointError):
                grad_norm = self.opt.step(self._bound.grads, factor).grad_norm
                skipped = False
        if skipped:
            self.opt.iteration += 1  # stays the number of iterations
        else:
            self._bound.refresh()
        epoch = self.position.epoch
        self.position = after
        self.iteration += 1
        self.samples_seen += sum(b.n_sequences for b in batches)
        self.tokens_seen += tokens
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        return StepResult(
            self.iteration, epoch, loss, self.opt.alpha * factor, grad_norm, tokens, trained,
            time.perf_counter() - start, skipped,
        )  # fmt: skip

    def raise_if_diverged(self) -> None:
        """`Diverged` when the last MOST_SKIPPED steps were all skipped."""
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise Diverged(
                f"loss or gradient was not finite in {MOST_SKIPPED} iterations in a row "
                f"(last: {self.iteration}); the last saved files are good: continue from them "
                "with a lower --adam-alpha"
            )

    def compile(self) -> float:
        """Compile every kernel that this run needs, on a few tokens; seconds it took. Changes
        nothing.
        """
        start = time.perf_counter()
        n = PROBE_TOKENS
        tokens = np.zeros(n, np.int32)
        batch = Batch.from_rows([(tokens, tokens)])
        acts = self.model.activations(self.adapter, n, n, checkpointing=True)
        buffers = self.model.loss_buffers(self.adapter, n)
        self.model.embed_tokens(self._bound, acts, batch)
        kinds: dict[tuple[int, ...], int] = {}
        for layer in range(self.model.hp.n_layer):
            kinds.setdefault(self.model.block_types(layer), layer)
        for layer in kinds.values():
            acts.x(layer, n)[:] = acts.x(0, n)
            self._probe(layer, acts, batch)
        last = self.model.hp.n_layer
        acts.x(last, n)[:] = acts.x(0, n)
        self.model.loss(self._bound, acts, buffers, batch, 1.0, gradient=True)
        self.model.embed_tokens_backward(self._bound, acts, batch)
        self._bound.zero_grads()
        return time.perf_counter() - start

    def _probe(self, layer: int, acts: Activations, batch: Batch, repeat: bool = False) -> None:
        self.model.block_forward(layer, self._bound, acts, batch)
        if repeat:
            self.model.block_forward(layer, self._bound, acts, batch, recompute=True)
        acts.shared("dx", batch.n_tokens)[:] = acts.x(layer + 1, batch.n_tokens)
        self.model.block_backward(layer, self._bound, acts, batch, 0)

    def forecast_seconds(self) -> float:
        """Seconds an iteration will take on average, from one block and one loss timed at the
        run's own size.
        """
        rows = range(min(self.batch, self.dataset.n_samples))
        batch = self.dataset.batch(list(rows))
        layers = self.model.hp.n_layer
        lowest = min(self.adapter.lowest_layer(), layers)
        self.model.embed_tokens(self._bound, self._acts, batch)
        blocks, heads = [], []
        for _ in range(2):
            start = time.perf_counter()
            self._probe(0, self._acts, batch, repeat=self.checkpointing)
            blocks.append(time.perf_counter() - start)
            self._acts.x(layers, batch.n_tokens)[:] = self._acts.x(0, batch.n_tokens)
            start = time.perf_counter()
            self.model.loss(
                self._bound, self._acts, self._buffers, batch, 1.0 / batch.n_trained, gradient=True
            )
            heads.append(time.perf_counter() - start)
        self._bound.zero_grads()
        # Blocks below the lowest pair run forwards only: about a third of the work.
        work = (layers - lowest) + lowest / 3
        per_token = min(blocks) * work / batch.n_tokens
        per_trained = min(heads) / batch.n_trained
        samples = self.dataset.n_samples / self._order.n_batches(self.batch * self.grad_acc)
        mean = self.limits
        return samples * (per_token * mean.mean_tokens + per_trained * mean.mean_trained)
