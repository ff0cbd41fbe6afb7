"""Blocks of micro-batches, and the order in which the gradient of a step is summed.

A step consists of the micro-batches 0 ... n-1. If the block size is B, block b contains the
micro-batches b B, b B + 1, ... (b + 1) B - 1; the last block can be shorter. If B = 0, all
micro-batches are in one block. Let g(m) be the gradient of micro-batch m. All additions are
elementwise, in float32 and in the order written:

    G(b) = ((0 + g(bB)) + g(bB + 1)) + ... + g(bB + B - 1)
    G    = ((G(0) + G(1)) + G(2)) + ...

(The kernels add the gradient of micro-batch m to the sum over the earlier micro-batches of its
block.) The loss of a step is summed in the same order, in float64. The sums of gradients and losses
depend only on B, not on the number of threads or on which machine computes a block. With a single
block, they are the same as in a run without blocks.

If a loss is not finite, the rest of its block is skipped, and no later blocks are added to the
sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from nbllama.data.batch import Batch
from nbllama.model.bound import Bound
from nbllama.model.passes import Trunk
from nbllama.report.log import WorkerRow
from nbllama.train.objective import Computing, Task

Check = Callable[[], None] | None


class Work(Computing, Protocol):
    """An object that can compute blocks: a trainer, or a worker with its own model and memory."""

    trunk: Trunk | None

    def set_dropout(self, micro: int) -> None:
        """If dropout is enabled, set the dropout masks for a micro-batch of the current step."""
        ...


@dataclass(frozen=True)
class Block:
    """Consecutive micro-batches of a step, already laid out for the passes.

    `step` is the number of iterations before this step, `number` is the index of the block within
    its step, and `first` is the index of its first micro-batch. The loss of the step is averaged
    over `trained` items. `gradient` says whether to compute the gradient; validation needs only the
    losses.
    """

    step: int
    number: int
    first: int
    batches: Sequence[Batch]
    trained: int
    gradient: bool = True

    @property
    def n_tokens(self) -> int:
        """The number of tokens processed."""
        return sum(batch.n_tokens for batch in self.batches)

    @property
    def kind(self) -> str:
        """Return a name shared by blocks that take a similar amount of time."""
        return "gradient" if self.gradient else "loss"


@dataclass(frozen=True)
class Job:
    """A task, its index within its step, and the number of iterations before that step."""

    step: int
    number: int
    task: Task
    gradient: ClassVar[bool] = False

    @property
    def n_tokens(self) -> int:
        """An upper bound on the number of tokens processed."""
        return self.task.n_tokens

    @property
    def kind(self) -> str:
        """Return a name shared by jobs that take a similar amount of time."""
        return type(self.task).__name__


Unit = Block | Job


def split(
    batches: Sequence[Batch], size: int, *, step: int, trained: int, gradient: bool = True
) -> list[Block]:
    """Split a step into blocks of `size` micro-batches; if `size` is 0, use a single block."""
    size = size or max(1, len(batches))
    return [
        Block(step, at // size, at, batches[at : at + size], trained, gradient)
        for at in range(0, len(batches), size)
    ]


def too_few(n: int, size: int, workers: int) -> str:
    """Return a message if n micro-batches are too few to give every worker a block, else ""."""
    own = size or n
    blocks = -(-n // own) if n else 0
    if not 0 < blocks < workers:
        return ""
    if n < workers:
        how = f"--grad-acc {workers} or more"
    else:
        how = f"--block {1 << ((n // workers).bit_length() - 1)}"
    return (
        f"each step has {n} micro-batches in {blocks} blocks of {own}, but there are {workers} "
        f"workers; pass {how} to give every worker a block"
    )


def compute(
    work: Work, block: Block, check: Check = None, after: Callable[[], None] | None = None
) -> list[float]:
    """Compute a block, leaving its gradient in `work.bound.grads`.

    Returns the sum of losses of each micro-batch. If the gradient is computed, the function stops
    at the first sum that is not finite. `check` runs between layers, and `after` runs after each
    micro-batch.
    """
    if block.gradient:
        work.bound.zero_grads()
    losses: list[float] = []
    weight = 1.0 / block.trained if block.gradient else 1.0
    try:
        for at, batch in enumerate(block.batches):
            if block.gradient:
                work.set_dropout(block.first + at)
            work.model.forward(work.bound, work.acts, batch, check, trunk=work.trunk)
            loss = work.objective.loss(work, batch, weight=weight, gradient=block.gradient)
            losses.append(loss)
            if after is not None:
                after()
            if not block.gradient:
                continue
            if not math.isfinite(sum_of(losses)):
                break
            work.model.backward(work.bound, work.acts, batch, check)
    finally:
        work.bound.dropout = None
    return losses


def sum_of(losses: Sequence[float]) -> float:
    """Add losses in the given order, in float64."""
    total = 0.0
    for loss in losses:  # Python 3.12's sum() rounds differently
        total += loss
    return total


class Total:
    """The sums of losses and gradients over blocks, which must be added in ascending order."""

    def __init__(self) -> None:
        self.loss, self.n = 0.0, 0
        self._sums: dict[str, np.ndarray] = {}
        self._load: np.ndarray | None = None

    @property
    def ended(self) -> bool:
        """Return whether the loss is no longer finite, in which case no more blocks are added."""
        return not math.isfinite(self.loss)

    def add(self, loss: float, grads: Mapping[str, np.ndarray], load: np.ndarray | None) -> None:
        """Add the loss, the gradient, and the tokens per expert of the next block."""
        if self.n == 0:
            # the sum starts from the first block, not from 0, so that -0 stays -0
            self.loss = loss
            self._sums = {name: np.array(g) for name, g in grads.items()}
            self._load = None if load is None else np.array(load)
        else:
            self.loss += loss
            for name, total in self._sums.items():
                total += grads[name]
            if self._load is not None and load is not None:
                self._load += load
        self.n += 1

    def put(self, bound: Bound) -> None:
        """Copy the sums into `bound`; they are 0 if no block was added."""
        if not self.n:
            bound.zero_grads()
        for name, total in self._sums.items():
            np.copyto(bound.grads[name], total)
        if self._load is not None and bound.load is not None:
            np.copyto(bound.load, self._load)


class Steps(Protocol):
    """An object that computes the loss and the gradient of a step from the step's micro-batches."""

    def evaluate(
        self, work: StepWork, batches: Sequence[Batch], trained: int, check: Check
    ) -> float:
        """Return the sum of losses, leaving the gradient in `work.bound.grads`."""
        ...

    def losses(self, work: StepWork, batches: Sequence[Batch], check: Check) -> list[float]:
        """Return each batch's sum of losses, without computing a gradient."""
        ...

    def each(self, work: StepWork, tasks: Sequence[Task], check: Check) -> list[Any]:
        """Return the result of each task."""
        ...

    def report(self) -> Sequence[WorkerRow]:
        """Return what each worker has computed since the last call."""
        ...


class StepWork(Work, Protocol):
    """A trainer that computes blocks and keeps track of the next step."""

    iteration: int


class Here:
    """An implementation of `Steps` that computes in this process; for `size`, see `split`."""

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def evaluate(
        self, work: StepWork, batches: Sequence[Batch], trained: int, check: Check
    ) -> float:
        """Compute the blocks one by one; see `Steps.evaluate`."""
        blocks = split(batches, self.size, step=work.iteration, trained=trained)
        if len(blocks) == 1:
            return sum_of(compute(work, blocks[0], check))
        total = Total()
        for block in blocks:
            loss = sum_of(compute(work, block, check))
            total.add(loss, work.bound.grads, work.bound.load)
            if total.ended:
                break
        total.put(work.bound)
        return total.loss

    def losses(self, work: StepWork, batches: Sequence[Batch], check: Check) -> list[float]:
        """Compute the losses; see `Steps.losses`."""
        blocks = split(batches, 0, step=work.iteration, trained=1, gradient=False)
        return [loss for block in blocks for loss in compute(work, block, check)]

    def each(self, work: StepWork, tasks: Sequence[Task], check: Check) -> list[Any]:
        """Compute the tasks one by one."""
        return [task.run(work, check) for task in tasks]

    def report(self) -> Sequence[WorkerRow]:
        """Return an empty tuple, because there are no workers."""
        return ()
