"""What a step minimises: a sum over the tokens or answers in its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

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
    """The parts of a trainer that an objective uses: model, trained adapter, and their memory."""

    model: Model
    adapter: Adapter
    bound: Bound
    acts: Activations
    buffers: LossBuffers
    limits: Limits
    batch: int

    def laid_out(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches in the form for computing: with shared beginnings, if enabled."""
        ...


class Drawing(Passes, Protocol):
    """The parts of a trainer that an objective needs for drawing answers, such as the seed."""

    seed: int
    iteration: int
    dataset: Dataset
    grad_acc: int


class Objective(Protocol):
    """A loss that is computed for micro-batches after their forward pass.

    `data`: additional data, each sample of which must fit in the run's memory. `work`: time of a
    step, divided by that of its forward and backward passes.
    """

    data: Sequence[Dataset]
    work: float

    def drawn(self, trainer: Drawing, batches: list[Batch], check: Check) -> list[Batch]:
        """Return the micro-batches of a step: those of the data, or batches built from them."""
        ...

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Begin a step (or an evaluation); return the number of items that its loss averages."""
        ...

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of a micro-batch's losses, after its forward pass.

        With `gradient`, the gradient of `weight` times that sum is written to the activations.
        """
        ...

    def measures(self) -> Mapping[str, float]:
        """Return additional numbers about the step (or evaluation) so far."""
        ...

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Prepare for the first step of a run."""
        ...

    def done(self, say: Say) -> None:
        """Record a finished step; `say` is called with lines for the user."""
        ...

    def samples(self) -> tuple[dict[str, str], ...]:
        """Return answers to show at an evaluation, as in `report.log.EvaluationRecord`."""
        ...

    def more_bytes(self, trainer: Drawing) -> int:
        """Return the bytes that a step needs in addition to those of the passes."""
        ...

    def more_seconds(self, trainer: Drawing) -> float:
        """Return the time of a step in addition to that of the passes. Changes nothing."""
        ...


class TakesData:
    """Methods shared by every `Objective` that uses the data's own micro-batches."""

    def drawn(self, trainer: Drawing, batches: list[Batch], check: Check) -> list[Batch]:
        """Return the micro-batches as they are."""
        return batches

    def samples(self) -> tuple[dict[str, str], ...]:
        """Return no answers."""
        return ()

    def more_bytes(self, trainer: Drawing) -> int:
        """Return 0."""
        return 0

    def more_seconds(self, trainer: Drawing) -> float:
        """Return 0."""
        return 0.0


class TokenLoss(TakesData):
    """The cross-entropy of each trained token. `floor`: see `ops.cross_entropy`."""

    data: Sequence[Dataset] = ()
    work = 1.0

    def __init__(self, floor: float = 0.0) -> None:
        self.floor = floor

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Return the number of trained tokens."""
        return sum(batch.n_trained for batch in batches)

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of the tokens' losses, in nats."""
        return trainer.model.loss(
            trainer.bound, trainer.acts, trainer.buffers, batch, weight=weight, gradient=gradient,
            floor=self.floor,
        )  # fmt: skip

    def measures(self) -> Mapping[str, float]:
        """Return nothing: the loss is the only measure."""
        return {}

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Do nothing."""

    def done(self, say: Say) -> None:
        """Do nothing."""
