"""Log-probabilities of whole answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from nbllama.data.batch import Batch
from nbllama.train.validation import batches

if TYPE_CHECKING:
    from nbllama.data.preferences import Preferences
    from nbllama.data.samples import Samples
    from nbllama.model.activations import Activations
    from nbllama.model.bound import Bound
    from nbllama.model.passes import Model
    from nbllama.ops.loss import LossBuffers
    from nbllama.train.limits import Limits
    from nbllama.train.objective import Passes

Check = Callable[[], None] | None


def answer_tokens(batch: Batch) -> np.ndarray:
    """Return the number of trained tokens in each sample as an int64 array `[S]`."""
    starts = batch.whole().seq_offsets[:-1]
    counts: np.ndarray = np.add.reduceat(batch.targets >= 0, starts, dtype=np.int64)
    return counts


def token_log_probabilities(
    model: Model, bound: Bound, acts: Activations, buffers: LossBuffers, *, batch: Batch
) -> np.ndarray:
    """Return log pi of each trained token as a float64 array `[M]`.

    The forward pass must have run. The output of the last block is not modified.
    """
    losses = np.empty(batch.n_trained, np.float32)
    # watchers observe only the pass that computes the gradient
    watch, model.watch, buffers.kept = model.watch, None, losses
    try:
        model.loss(bound, acts, buffers, batch, weight=1.0, gradient=False)
    finally:
        model.watch, buffers.kept = watch, None
    return -losses.astype(np.float64)


def log_probabilities(
    model: Model, bound: Bound, acts: Activations, buffers: LossBuffers, *, batch: Batch
) -> np.ndarray:
    """Return log pi(y|x) of each sample as a float64 array `[S]`.

    Each value is the sum over the trained tokens of a sample, which must have at least one. The
    forward pass must have run. The output of the last block is not modified.
    """
    counts = answer_tokens(batch)
    of_tokens = token_log_probabilities(model, bound, acts, buffers, batch=batch)
    sums: np.ndarray = np.add.reduceat(of_tokens, np.cumsum(counts) - counts)
    return sums


def of_samples(
    model: Model,
    bound: Bound,
    acts: Activations,
    buffers: LossBuffers,
    *,
    samples: Samples,
    rows: np.ndarray,
    most: Limits,
    check: Check,
) -> Iterator[np.ndarray]:
    """Yield the log-probabilities of the samples in `rows`, as one float64 array per batch.

    `rows` contains sample indices. The batches are as large as `most` permits. `check` is called
    between layers.
    """
    tokens, trained = (counts[rows] for counts in samples.lengths())
    for part in batches((tokens, trained), most.computed, most.trained):
        batch = samples.batch(rows[part].tolist())
        model.forward(bound, acts, batch, check)
        yield log_probabilities(model, bound, acts, buffers, batch=batch)


def of_preferences(
    trainer: Passes,
    bound: Bound,
    acts: Activations,
    buffers: LossBuffers,
    *,
    data: Preferences,
    check: Check,
) -> Iterator[np.ndarray]:
    """Yield the log-probabilities of all answers in `data`, as one float64 array per batch.

    If sharing is enabled, a prompt with several answers is processed only once. `acts` and
    `buffers` must be large enough for any single sample. `check` is called between layers.
    """
    most = trainer.limits
    for numbers in batches(data.lengths(), most.tokens, most.trained):
        for at in range(0, len(numbers), trainer.batch):
            part = numbers[at : at + trainer.batch]
            laid_out = trainer.laid_out([data.batch(part)])
            if laid_out[0].n_tokens > most.computed:  # validation data may share fewer prompts
                laid_out = trainer.laid_out([data.batch([i]) for i in part])
            for batch in laid_out:
                trainer.model.forward(bound, acts, batch, check)
                yield log_probabilities(trainer.model, bound, acts, buffers, batch=batch)
