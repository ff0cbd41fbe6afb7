"""The objective of a step: a sum over the tokens or answers in its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nbllama.data.batch import Batch, Dataset
from nbllama.lora.pairs import Adapter
from nbllama.model.activations import Activations
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.ops.loss import LossBuffers
from nbllama.train.limits import Limits

Check = Callable[[], None] | None
Say = Callable[[str], None]


class Passes(Protocol):
    """The parts of a trainer that an objective uses: the model, the adapter, and working memory."""

    model: Model
    adapter: Adapter
    bound: Bound
    acts: Activations
    buffers: LossBuffers
    limits: Limits
    batch: int

    def laid_out(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches as the passes need them, with shared beginnings if enabled."""
        ...


class Computing(Passes, Protocol):
    """An object that can compute tasks: a trainer, or a worker with its own model and memory."""

    objective: Objective


class Task(Protocol):
    """Work in a step other than computing gradients, such as drawing an answer.

    A task can be pickled and then computed in a different process that has the same model and
    adapter.
    """

    @property
    def n_tokens(self) -> int:
        """Return an upper bound on the number of tokens processed."""
        ...

    def run(self, work: Computing, check: Check) -> Any:
        """Compute the task; `check` is called often and may raise."""
        ...


class Drawing(Passes, Protocol):
    """The parts of a trainer that are required to draw answers, such as the seed."""

    seed: int
    iteration: int
    dataset: Dataset
    grad_acc: int

    def each(self, tasks: Sequence[Task], check: Check) -> list[Any]:
        """Compute tasks, possibly on other machines, and return their results in the same order."""
        ...


class Objective(Protocol):
    """A loss that is computed for each micro-batch after its forward pass.

    `data` contains additional data sets; the run's memory must have room for any of their samples.
    `work` is the ratio of a step's time to the time of its forward and backward passes. `point` is
    a number that `before` sets for all micro-batches of a step.
    """

    data: Sequence[Dataset]
    work: float
    point: float

    def drawn(self, trainer: Drawing, batches: list[Batch], check: Check) -> list[Batch]:
        """Return the micro-batches of a step: `batches`, or new batches of drawn answers."""
        ...

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Prepare a step or an evaluation, and return the number of items to average over."""
        ...

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the summed loss of a micro-batch, after its forward pass.

        If `gradient` is true, the gradient of `weight` times this sum is also written to the
        activations.
        """
        ...

    def measures(self) -> Mapping[str, float]:
        """Return measures of the current step or evaluation, in addition to the loss."""
        ...

    def take_part(self) -> Any:
        """Return the sums collected by `loss` for the measures, and reset them to 0."""
        ...

    def add_part(self, part: Any) -> None:
        """Add sums that `take_part` returned, possibly in a different process."""
        ...

    def sent(self, batch: Batch) -> Batch:
        """Return a batch that contains the values `loss` needs, but not the data set."""
        ...

    def copied(self) -> Objective:
        """Return a copy without data, for use with batches from `sent` in a different process."""
        ...

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Prepare for the first step of a run."""
        ...

    def done(self, say: Say) -> None:
        """Record a finished step; `say` is called with messages for the user."""
        ...

    def samples(self) -> tuple[dict[str, str], ...]:
        """Return answers to show with an evaluation, as in `report.log.EvaluationRecord`."""
        ...

    def more_bytes(self, trainer: Drawing) -> int:
        """Return how many bytes a step needs in addition to the memory for its passes."""
        ...

    def more_seconds(self, trainer: Drawing) -> float:
        """Return, without side effects, the seconds that a step takes in addition to its passes."""
        ...


class TakesData:
    """The methods shared by all objectives that use the micro-batches of the data unchanged."""

    def drawn(self, trainer: Drawing, batches: list[Batch], check: Check) -> list[Batch]:
        """Return the micro-batches unchanged."""
        return batches

    def samples(self) -> tuple[dict[str, str], ...]:
        """Return an empty tuple, because no answers are drawn."""
        return ()

    def more_bytes(self, trainer: Drawing) -> int:
        """Return 0, because a step needs only the memory for its passes."""
        return 0

    def more_seconds(self, trainer: Drawing) -> float:
        """Return 0, because `work` covers the whole step."""
        return 0.0


class TokenLoss(TakesData):
    """The cross-entropy of the trained tokens; for `floor`, see `ops.cross_entropy`."""

    data: Sequence[Dataset] = ()
    work = 1.0
    point = 0.0

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = floor

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Return the number of trained tokens."""
        return sum(batch.n_trained for batch in batches)

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of per-token losses, in nats."""
        return trainer.model.loss(
            trainer.bound, trainer.acts, trainer.buffers, batch, weight=weight, gradient=gradient,
            floor=self.floor,
        )  # fmt: skip

    def measures(self) -> Mapping[str, float]:
        """Return an empty dict, because there are no measures except the loss."""
        return {}

    def take_part(self) -> None:
        """Return None, because there are no measures."""

    def add_part(self, part: None) -> None:
        """Do nothing."""

    def sent(self, batch: Batch) -> Batch:
        """Return the batch unchanged, because it refers to no data set."""
        return batch

    def copied(self) -> TokenLoss:
        """Return a copy of the objective."""
        return TokenLoss(self.floor)

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Do nothing."""

    def done(self, say: Say) -> None:
        """Do nothing."""
