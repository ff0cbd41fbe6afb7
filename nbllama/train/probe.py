"""Passes that run before training to compile the kernels and to measure how long a step takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.kernels.turns import one_at_a_time
from nbllama.model.activations import Activations
from nbllama.model.block import block_backward, block_forward
from nbllama.train.saved_rows import counted
from nbllama.train.trainer import Trainer

ROUNDS = 3  # rounds of timing; the first round touches new memory and is not counted
TOKENS = 8  # too many tokens for the few-token path, so the packed kernels are compiled


@one_at_a_time
def compile_kernels(trainer: Trainer) -> float:
    """Compile every kernel that the run needs, using a few tokens; return the time in seconds."""
    start = time.perf_counter()
    n = TOKENS
    tokens = np.zeros(n, np.int32)
    read = (tokens[:6], np.full(6, NOT_TRAINED, np.int32))
    batch = Batch.from_rows([read, (tokens, tokens)] if trainer.shares else [(tokens, tokens)])
    batch = trainer.laid_out([batch])[0]  # both layouts have `n` rows
    acts = trainer.model.activations(
        trainer.adapter, n, n, checkpointing=True, dropout=trainer.dropout > 0
    )
    trainer.set_dropout(0)
    buffers = trainer.model.loss_buffers(trainer.adapter, n)
    trainer.model.embed_tokens(trainer.bound, acts, batch)
    _clear_lent(acts, trainer.model.hp.lent, batch.n_tokens)
    kinds: dict[tuple[object, ...], int] = {}
    hp = trainer.model.hp
    for layer in range(hp.n_layer):
        kinds.setdefault((hp.mixer_at(layer), trainer.model.block_types(layer)), layer)
    for layer in kinds.values():
        acts.x(layer, n)[:] = acts.x(0, n)
        _one_block(trainer, layer, acts, batch)
    last = trainer.model.hp.n_layer
    acts.x(last, n)[:] = acts.x(0, n)
    trainer.model.loss(trainer.bound, acts, buffers, batch, weight=1.0, gradient=True)
    trainer.model.embed_tokens_backward(trainer.bound, acts, batch)
    trainer.bound.zero_grads()
    trainer.bound.dropout = None
    return time.perf_counter() - start


def _clear_lent(acts: Activations, layers: Iterable[int], n: int) -> None:
    """Clear the keys, values and gradients that blocks would read from blocks that are not run."""
    for layer in layers:
        for name in ("k", "v", "dk", "dv"):
            acts.shared(f"{name}_of_{layer}", n).fill(0)


def _one_block(
    trainer: Trainer, layer: int, acts: Activations, batch: Batch, first: int | None = None
) -> None:
    """Run the forward and backward passes of block `layer`.

    If `first` is given, checkpointing is simulated: block `first` runs forward, and then `layer`
    recomputes its forward pass and runs backward. If these are two different blocks, the weights of
    `layer` are not in the CPU cache, as in a real step.
    """
    if first is not None:
        block_forward(trainer.model, first, trainer.bound, acts, batch=batch)
    block_forward(
        trainer.model, layer, trainer.bound, acts, batch=batch, recompute=first is not None
    )
    acts.shared("dx", batch.n_tokens)[:] = acts.x(layer + 1, batch.n_tokens)
    block_backward(trainer.model, layer, trainer.bound, acts, batch=batch, lowest=0)


def _kinds(trainer: Trainer) -> dict[tuple[object, ...], list[int]]:
    """Group the blocks by everything that affects their run time, such as the mixer and sizes."""
    hp = trainer.model.hp
    kinds: dict[tuple[object, ...], list[int]] = {}
    for layer in range(hp.n_layer):
        sizes = hp.sizes_at(layer)
        own = sizes.kv_from == layer
        sizes = sizes._replace(row=0, kv_from=0)
        kind = (hp.mixer_at(layer), hp.experts_at(layer) is not None, sizes, own)
        kinds.setdefault(kind, []).append(layer)
    return kinds


def _mean(rounds: list[float]) -> float:
    """Return the mean over all rounds except the first."""
    return sum(rounds[1:]) / (len(rounds) - 1)


@one_at_a_time
def step_seconds(trainer: Trainer) -> tuple[float, float]:
    """Return the expected mean seconds per iteration, with and without the frozen blocks.

    Times two blocks of each kind and two loss computations at the run's sizes, without side
    effects.
    """
    batch = trainer.laid_out(trainer.feed.take(trainer.position, trainer.batch, 1).batches)[0]
    layers = trainer.model.hp.n_layer
    lowest = min(trainer.adapter.lowest_layer(), layers)
    trainer.model.embed_tokens(trainer.bound, trainer.acts, batch)
    _clear_lent(trainer.acts, trainer.model.hp.lent, batch.n_tokens)
    trainer.set_dropout(0)
    kinds = _kinds(trainer)
    blocks: dict[tuple[object, ...], list[float]] = {kind: [] for kind in kinds}
    heads = []
    for repetition in range(ROUNDS):
        for kind, of in kinds.items():
            # Use a different block in each round, because weights that are still in the cache would
            # be read faster than in a real step.
            of = [i for i in of if i >= lowest] or of
            at = repetition * (len(of) - 1) // (ROUNDS - 1)
            layer, first = of[at], of[at - len(of) // 2]
            for i in (layer, first):
                trainer.acts.x(i, batch.n_tokens)[:] = trainer.acts.x(0, batch.n_tokens)
            spent = []
            for before in (None, first)[: 2 if trainer.checkpointing else 1]:
                start = time.perf_counter()
                _one_block(trainer, layer, trainer.acts, batch, before)
                spent.append(time.perf_counter() - start)
            again = sum(trainer.acts.recomputes(layer) for layer in range(lowest, layers))
            share = again / max(1, layers - lowest)
            blocks[kind].append(spent[0] * (1 - share) + spent[-1] * share)
        # With a tied output layer, each input token would be predicted with a probability of 1. The
        # denormal probabilities of all other tokens would be many times slower to compute, so the
        # channels are shifted.
        x = trainer.acts.x(0, batch.n_tokens)
        trainer.acts.x(layers, batch.n_tokens)[:] = np.roll(x, 1, axis=1)
        start = time.perf_counter()
        trainer.objective.loss(trainer, batch, weight=1.0 / batch.n_trained, gradient=True)
        heads.append(time.perf_counter() - start)
    trainer.bound.zero_grads()
    trainer.bound.dropout = None
    # Blocks below the lowest pair run only the forward pass, which is about a third of the work.
    block = {kind: _mean(spent) for kind, spent in blocks.items()}
    above = sum(block[k] * sum(i >= lowest for i in of) for k, of in kinds.items())
    below = sum(block[k] * sum(i < lowest for i in of) / 3 for k, of in kinds.items())
    per_trained = _mean(heads) / batch.n_trained
    mean, n = trainer.limits, trainer.dataset.n_samples
    per_step = trainer.dataset.per_batch(trainer.batch) * trainer.grad_acc
    if not trainer.feed.wraps:
        per_step = min(per_step, n / math.ceil(n / per_step))  # an epoch's last step may be short
    per_step *= trainer.objective.work
    computed = mean.mean_tokens * (counted(trainer).share if trainer.shares else 1.0)
    stored = per_step * (above / batch.n_tokens * computed + per_trained * mean.mean_trained)
    stored += trainer.objective.more_seconds(trainer)
    return stored + per_step * below / batch.n_tokens * computed, stored
