"""A forecast of a run's memory and time, printed at the start and checked at the end.

The memory figure is exact. It is the sum of three parts: the memory that the process uses once its
kernels are compiled, all arrays that the trainer has allocated but not yet touched, and the model
file. The system maps the pages of the file as they are read, and can drop them, because they can
be read from the file again. The time is estimated by timing individual blocks and loss
computations at the sizes that the run uses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.errors import NotEnoughMemory
from nbllama.model.activations import activation_bytes
from nbllama.model.passes import layout
from nbllama.ops.attention.attention import forward_floats
from nbllama.ops.attention.grad import gradient_floats
from nbllama.ops.attention.tree import path_floats
from nbllama.ops.delta_net.grad import gradient_floats as delta_floats
from nbllama.ops.linear.lora_grad import sum_floats
from nbllama.ops.linear.matmul import scratch_bytes
from nbllama.ops.loss import LossBuffers
from nbllama.report.log import memory
from nbllama.system.memory import available_memory, mapped, resident
from nbllama.train.probe import step_seconds
from nbllama.train.trainer import Trainer


class Forecast(NamedTuple):
    """The memory of a run in bytes, and the time of an iteration in seconds."""

    held: int  # already resident, excluding the mapped file: program, kernels, data, optimiser
    activations: dict[bool, int]  # with checkpointing (True) and without it (False)
    checkpointing: bool
    chosen: int  # activations in this run
    loss: int  # logits for one chunk of positions
    scratch: int  # tiles and score rows for all threads
    saving: int  # copy of the adapter and its moments, made during a save
    weights: int  # the mapped file
    seconds: float
    stored_seconds: float  # for an iteration that uses the stored output of the frozen blocks
    more: int = 0  # additional memory for the objective, for example to draw answers

    @property
    def untouched(self) -> int:
        """Memory in addition to `held` that the run will use and that the system cannot drop."""
        return self.chosen + self.loss + self.scratch + self.more + self.saving

    @property
    def peak(self) -> int:
        """Expected peak resident memory."""
        return self.held + self.untouched + self.weights


def check_memory(trainer: Trainer, threads: int) -> Forecast:
    """Return a forecast of the memory alone, before anything is compiled.

    Raises `NotEnoughMemory` if the run needs more memory than is available.
    """
    needs = _memory(trainer, threads)
    available = available_memory()
    if needs.untouched > available:
        more = needs.activations[True] + needs.untouched - needs.chosen
        hint = "try a smaller --batch or --ctx"
        if trainer.kept and more < available:
            hint = "pass a smaller --activation-memory"
        elif not needs.checkpointing and more < available:
            hint = "pass --use-checkpointing"
        raise NotEnoughMemory(
            f"the run requires {memory(needs.untouched)} more memory, but only "
            f"{memory(available)} is available; {hint}"
        )
    return needs


def forecast(trainer: Trainer, threads: int) -> Forecast:
    """Return the forecast of memory and time.

    The kernels must be compiled, and nothing must have been written to the activations yet.
    """
    needs = _memory(trainer, threads)  # must come first, because timing touches the activations
    seconds, stored = step_seconds(trainer)
    return needs._replace(seconds=seconds, stored_seconds=stored)


def _memory(trainer: Trainer, threads: int) -> Forecast:
    model, hp, adapter = trainer.model, trainer.model.hp, trainer.adapter
    for array in (*adapter.parameters().values(), *trainer.gradients.values()):
        _touch(array)
    for moments in (trainer.opt.m, trainer.opt.v):
        for array in moments.values():
            _touch(array)
    most, drops = trainer.limits, trainer.dropout > 0
    sizes = layout(model, adapter, most.computed, most.trained, dropout=drops)
    pair = adapter.pairs.get(model.output.name)
    rows = min(trainer.batch, trainer.dataset.n_samples) * getattr(trainer.dataset, "width", 1)
    passes, paths = [], 0
    for of in hp.each_size:
        kv = {"n_kv": of.n_head_kv, "d": of.head_dim}
        passes += [
            forward_floats(most.longest, most.keys, rows, **kv),
            gradient_floats(most.longest, most.keys, rows, n_head=hp.n_head, **kv),
        ]
        paths = max(paths, path_floats(most.keys, **kv))
    if net := hp.delta:
        passes.append((delta_floats(most.longest, net.size, net.size), 0))
    width = max(
        (
            *(sum(w.shape) for k, w in model.matrices.items() if k.startswith("blk.")),
            *(sum(w[0].shape) for w in model.experts.values()),
        ),
        default=0,
    )
    ranks = (sizes.expert_rank, *sizes.ranks.values())
    sums = sum_floats(most.computed, max(ranks), width)
    sums += paths if trainer.shares else 0
    own, common = (max(floats) for floats in zip(*passes, strict=True))
    return Forecast(
        held=resident() - mapped(*model.gguf.paths),
        activations={on: activation_bytes(sizes, checkpointing=on) for on in (True, False)},
        checkpointing=trainer.checkpointing,
        chosen=activation_bytes(sizes, checkpointing=trainer.checkpointing, kept=trainer.kept),
        loss=LossBuffers.nbytes(
            hp.n_vocab, hp.n_embd, pair.rank if pair else 0, most.trained, cap=hp.logit_softcap
        ),
        scratch=4 * (threads * own + common + sums) + threads * scratch_bytes(),
        saving=(3 if trainer.opt.has_second_moment else 2) * 4 * adapter.n_parameters,
        weights=model.gguf.size,
        seconds=0.0,
        stored_seconds=0.0,
        more=trainer.objective.more_bytes(trainer),
    )


def _touch(array: np.ndarray) -> None:
    """Write zeros to an array of zeros, so that the system allocates the array's memory."""
    np.multiply(array, 1, out=array)
