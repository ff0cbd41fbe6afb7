"""What sharing of beginnings (`nbllama.data.shared`) saves: rows of a batch, and of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nbllama.data.batch import Dataset
from nbllama.data.order import Position
from nbllama.data.packing import Packed
from nbllama.data.samples import Samples
from nbllama.data.shared import FEWEST_ROWS, most_rows, share

if TYPE_CHECKING:
    from nbllama.train.trainer import Trainer

MOST_BATCHES = 1000  # that are laid out to see what is saved


class Sizes(NamedTuple):
    """Of the largest micro-batch: rows that are computed, and tokens of its samples."""

    computed: int
    keys: int


def largest_shared(dataset: Dataset, n_rows: int, *, tokens: int) -> Sizes:
    """Return bounds for batches of `n_rows` rows whose samples share; `tokens`: if they do not.

    Of data other than records what is saved is not known beforehand.
    """
    if isinstance(dataset, Packed) and dataset.shared:
        return Sizes(*dataset.largest_shared(n_rows))
    if not isinstance(dataset, Samples):
        return Sizes(tokens, tokens)
    rows = most_rows([dataset.inputs(i) for i in range(dataset.n_samples)], n_rows)
    return Sizes(min(tokens, max(rows, n_rows * (FEWEST_ROWS - 1))), tokens)


class Counted(NamedTuple):
    """Tokens of the first batches of an epoch, and how many are computed; `whole`: of all."""

    tokens: int
    computed: int
    batches: int
    whole: bool

    @property
    def share(self) -> float:
        """Computed tokens by tokens."""
        return self.computed / self.tokens


def saved_line(trainer: Trainer) -> str:
    """Return what sharing saves in an epoch, or why there is none, for the screen."""
    if not trainer.shares:
        return f"beginnings not shared: blocks of {trainer.model.hp.arch} carry states"
    found = counted(trainer)
    if found.computed == found.tokens:
        return "none of them shared"
    percent = f"{100 * found.share:.1f} %"
    if not found.whole:
        return f"about {percent} computed: shared beginnings once"
    return f"{found.computed} ({percent}) computed: shared beginnings once"


def counted(trainer: Trainer) -> Counted:
    """Lay out the batches of the present epoch, at most `MOST_BATCHES`. Changes nothing."""
    epoch = trainer.position.epoch
    place, tokens, computed, n = Position(epoch), 0, 0, 0
    while place.epoch == epoch and n < MOST_BATCHES:
        (batch,), place, _ = trainer.feed.take(place, trainer.batch, 1)
        tokens += batch.n_tokens
        computed += share(batch).n_tokens if trainer.shares else batch.n_tokens
        n += 1
    return Counted(tokens, computed, n, place.epoch != epoch)
