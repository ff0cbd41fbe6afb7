"""What a step minimises: a sum over its micro-batches, of tokens or of answers."""

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
    """What an objective uses of a trainer: the model, the adapter at work, and their memory."""

    model: Model
    adapter: Adapter
    bound: Bound
    acts: Activations
    buffers: LossBuffers
    limits: Limits
    batch: int

    def laid_out(self, batches: list[Batch]) -> list[Batch]:
        """Return the batches as they are computed: with shared beginnings, if the run shares."""
        ...


class Objective(Protocol):
    """A loss of micro-batches whose forward pass is done.

    `data`: what else the run's memory must have room for, sample by sample. `work`: time of a step
    by that of its passes forward and backward. `point`: a number that all micro-batches of a step
    need, from `before`.
    """

    data: Sequence[Dataset]
    work: float
    point: float

    def before(self, trainer: Passes, batches: Sequence[Batch], check: Check) -> int:
        """Begin a step (or an evaluation); return the number that its loss is the mean over."""
        ...

    def loss(self, trainer: Passes, batch: Batch, *, weight: float, gradient: bool) -> float:
        """Return the sum of a micro-batch's losses, after its forward pass.

        With `gradient`, the gradient of `weight` times that sum is left in the activations.
        """
        ...

    def measures(self) -> Mapping[str, float]:
        """Return further numbers of the step (or evaluation) so far."""
        ...

    def take_part(self) -> Any:
        """Return the measures since the last call, which are not counted here any more."""
        ...

    def add_part(self, part: Any) -> None:
        """Count the measures that another process took."""
        ...

    def sent(self, batch: Batch) -> Batch:
        """Return a batch without its data set, with what `loss` needs of it."""
        ...

    def copied(self) -> Objective:
        """Return an objective without data, for the batches of `sent` in another process."""
        ...

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Do what must be done before the first step of a run."""
        ...

    def done(self, say: Say) -> None:
        """Take note of a step that is done; `say` gets lines for the user."""
        ...


class TokenLoss:
    """The cross-entropy of each trained token. `floor`: see `ops.cross_entropy`."""

    data: Sequence[Dataset] = ()
    work = 1.0
    point = 0.0

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
        """Return nothing: there is the loss only."""
        return {}

    def take_part(self) -> None:
        """Return nothing: there are no measures."""

    def add_part(self, part: None) -> None:
        """Do nothing."""

    def sent(self, batch: Batch) -> Batch:
        """Return the batch: it has no data set."""
        return batch

    def copied(self) -> TokenLoss:
        """Return the same objective."""
        return TokenLoss(self.floor)

    def start(self, trainer: Passes, check: Check, say: Say) -> None:
        """Do nothing."""

    def done(self, say: Say) -> None:
        """Do nothing."""
