"""Count the rows that an epoch saves by sharing common beginnings (`nbllama.data.shared`)."""

from __future__ import annotations

from typing import NamedTuple

from nbllama.data.order import Position
from nbllama.data.shared import share
from nbllama.train.trainer import Trainer

MOST_BATCHES = 1000  # maximum number of batches to lay out for the measurement


class Counted(NamedTuple):
    """The number of tokens in the first batches of an epoch, and how many of them are computed.

    `whole` says whether the counted batches cover the whole epoch.
    """

    tokens: int
    computed: int
    batches: int
    whole: bool

    @property
    def share(self) -> float:
        """The ratio of computed tokens to all tokens."""
        return self.computed / self.tokens


def saved_line(trainer: Trainer) -> str:
    """Return a phrase for the run's header that says how many tokens of an epoch are computed."""
    if not trainer.shares:
        return f"prefixes are not shared, because {trainer.model.hp.arch} blocks carry a state"
    found = counted(trainer)
    if found.computed == found.tokens:
        return "none shared"
    percent = f"{100 * found.share:.1f} %"
    if not found.whole:
        return f"about {percent} computed, each shared prefix only once"
    return f"{found.computed} ({percent}) computed, each shared prefix only once"


def counted(trainer: Trainer) -> Counted:
    """Lay out up to `MOST_BATCHES` batches of the current epoch, and count tokens.

    This has no side effects.
    """
    epoch = trainer.position.epoch
    place, tokens, computed, n = Position(epoch), 0, 0, 0
    while place.epoch == epoch and n < MOST_BATCHES:
        (batch,), place, _ = trainer.feed.take(place, trainer.batch, 1)
        tokens += batch.n_tokens
        computed += share(batch).n_tokens if trainer.shares else batch.n_tokens
        n += 1
    return Counted(tokens, computed, n, place.epoch != epoch)
