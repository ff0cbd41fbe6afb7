"""What a run will take, told before it starts and compared with the truth when it ends.

Memory is added up, not guessed: what the process holds once its kernels are compiled, every array
that the trainer has allocated but not yet touched, and the model file, whose pages the system maps
in as they are read (and can drop again: they are not private). Time is measured: one block, one
loss, at the run's own size.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

import psutil

from nbllama.activations import activation_bytes
from nbllama.errors import NotEnoughMemory
from nbllama.model import linear_ranks
from nbllama.ops.attention import forward_pieces
from nbllama.ops.attention_grad import gradient_pieces
from nbllama.ops.loss import LossBuffers
from nbllama.ops.matmul import scratch_bytes
from nbllama.progress import memory
from nbllama.train import Trainer


class Forecast(NamedTuple):
    """Bytes, and seconds an iteration."""

    held: int  # resident already
    activations: int
    other_mode: int  # activations if checkpointing were the other way round
    loss: int  # logits of one chunk of positions
    adapter: int  # parameters, gradients, two moments
    scratch: int  # tiles and score rows of all threads
    weights: int  # the mapped file
    seconds: float

    @property
    def private(self) -> int:
        """What cannot be dropped: all but the mapped weights."""
        return self.held + self.activations + self.loss + self.adapter + self.scratch

    @property
    def peak(self) -> int:
        """Expected peak of resident memory."""
        return self.private + self.weights


def forecast(trainer: Trainer, threads: int, checkpointing: bool) -> Forecast:
    """Forecast for a trainer whose kernels are compiled and whose large arrays are untouched.

    Raises `NotEnoughMemory` when the private part is more than what the system has available.
    """
    model, hp = trainer.model, trainer.model.hp
    held = resident()
    ranks = linear_ranks(trainer.adapter)
    most = trainer.limits
    args = (hp, ranks, most.tokens, most.trained, max(ranks.values(), default=0))
    pair = trainer.adapter.pairs.get(model.output.name)
    pieces = sum(forward_pieces(most.longest, hp.head_dim)) + sum(
        gradient_pieces(most.longest, hp.head_dim)
    )
    told = Forecast(
        held=held,
        activations=activation_bytes(*args, checkpointing),
        other_mode=activation_bytes(*args, not checkpointing),
        loss=LossBuffers.nbytes(hp.n_vocab, hp.n_embd, pair.rank if pair else 0, most.trained),
        adapter=16 * trainer.adapter.n_parameters,
        scratch=threads * (4 * pieces + scratch_bytes()),
        weights=model.gguf.size,
        seconds=0.0,
    )
    available = available_memory()
    if told.private - held > available:
        raise NotEnoughMemory(
            f"the run needs {memory(told.private - held)} more and {memory(available)} are "
            "available; try a smaller --batch or --ctx, or --use-checkpointing"
        )
    return told._replace(seconds=trainer.forecast_seconds())


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """Largest number of bytes this process had in memory."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory() -> int:
    """Bytes this process may still take: the system's, or its control group's if that is less."""
    available = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        if os.path.exists(limit) and os.path.exists(used):
            text, now = _read(limit), _read(used)
            if text.isdigit() and now.isdigit():
                available = min(available, max(0, int(text) - int(now)))
    return available


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
