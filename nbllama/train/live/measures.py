"""Measurements taken before and after iterations, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nbllama.data.prompts import Prompts
from nbllama.train.live.norms import Norms
from nbllama.train.live.texts import Texts, sequences
from nbllama.train.trainer import Trainer

SHARE = 0.005  # maximum share of the run's time
CREDIT = 30.0  # maximum seconds of unused time to carry over
MOST_COLUMNS = 400  # maximum number of `norms` rows per run
MOST_PASSING = 20  # maximum number of texts to log per run, in addition to the followed ones

Row = dict[str, Any]


class Budget:
    """A time budget: work is allowed while it takes at most a fraction `share` of the run's time.

    Only the CPU time of the thread that does the work is counted, so other programs have no effect.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share, self._clock = share, clock
        self._next = clock()

    @property
    def allows(self) -> bool:
        """Return whether the budget allows more work."""
        return self._clock() >= self._next

    def took(self, seconds: float) -> None:
        """Charge the time of finished work to the budget.

        At most `CREDIT` seconds of unused time are carried over.
        """
        self._next = max(self._next, self._clock() - CREDIT) + seconds / self._share


class Measures:
    """Measure a trainer between iterations, without affecting its passes or updates.

    `keep` is called with rows that go to both the log and the page, and `show` is called with rows
    that go only to the page. `n_iter` is the total number of iterations.
    """

    def __init__(
        self,
        trainer: Trainer,
        n_iter: int,
        keep: Callable[[Row], None],
        show: Callable[[Row], None],
    ) -> None:
        self._trainer, self._keep, self._show = trainer, keep, show
        self._norms = Norms(trainer.adapter, trainer.model.hp.n_layer)
        self._texts = Texts(trainer.model.tokenizer)
        self._stride = max(1, -(-n_iter // MOST_COLUMNS))
        self._pass_stride = max(1, -(-n_iter // MOST_PASSING))
        self._kept_passing = -self._pass_stride
        self._position = trainer.position
        self._first, self._iteration = trainer.iteration, -1
        self._with_norms = False
        self.budget = Budget(SHARE)

    def before(self) -> None:
        """Start measuring an iteration; nothing else may be using the trainer."""
        start, trainer = time.thread_time(), self._trainer
        self._position, self._iteration = trainer.position, trainer.iteration
        trainer.buffers.seen = []
        due = (trainer.iteration - self._first) % self._stride == 0
        self._with_norms = due and self.budget.allows
        if self._with_norms:
            self._norms.take_before()
            self.budget.took(time.thread_time() - start)

    def after(self) -> None:
        """Record the measurements of the iteration that has just ended."""
        trainer, start = self._trainer, time.thread_time()
        seen, trainer.buffers.seen = trainer.buffers.seen, None
        if seen is None or trainer.iteration != self._iteration + 1:
            return
        if self._with_norms:
            self._keep(self._norms.row(trainer.iteration, trainer.gradients))
        self._text(np.concatenate(seen) if seen else np.empty(0, np.float32))
        self.budget.took(time.thread_time() - start)

    def close(self) -> None:
        """Stop measuring."""
        self._trainer.buffers.seen = None

    def _text(self, losses: np.ndarray) -> None:
        trainer = self._trainer
        if isinstance(trainer.dataset, Prompts):  # these batches are placeholders
            return
        taken = trainer.feed.take(self._position, trainer.batch, trainer.grad_acc)
        if len(losses) != sum(batch.n_trained for batch in taken.batches):
            return  # the step was interrupted because its loss was not finite
        found = list(sequences(taken.batches, losses))
        rows = list(self._texts.followed(trainer.iteration, found))
        for row in rows:
            self._keep(row)
        if rows or not self._with_norms:
            return
        row = self._texts.passing(trainer.iteration, found)
        if trainer.iteration - self._kept_passing >= self._pass_stride:
            self._kept_passing = trainer.iteration
            self._keep(row)
        else:
            self._show(row)
