"""A worker, which holds a model and memory for its passes but no state that a run depends on.

A worker receives a `Plan` once, the parameters once per step, and blocks to compute. It returns the
gradients of each block (`Answer`). This module does not depend on how these objects are sent.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nbllama import __version__
from nbllama.checkpoint.environment import environment, more_of_environment
from nbllama.checkpoint.identity import model_fingerprint
from nbllama.errors import NbllamaError, shown
from nbllama.lora.pairs import Adapter, Pair
from nbllama.model.bound import Bound
from nbllama.model.passes import Model, Trunk, load_model
from nbllama.ops.dropout import dropout_for
from nbllama.train.blocks.compute import Check, Job, Unit, Work, compute, sum_of
from nbllama.train.limits import Limits
from nbllama.train.objective import Objective
from nbllama.train.trunk import TrunkCache

_PIECE = 1 << 24


class Key(NamedTuple):
    """The unit that an answer belongs to; `attempt` increases each time a unit is assigned."""

    step: int
    number: int
    attempt: int


@dataclass(frozen=True)
class Answer:
    """The result of a computed unit.

    `losses` is the list that `compute` returns, and `parts` contains the objective's sums for each
    micro-batch. `grads` contains the float32 gradient with respect to each parameter and is empty
    for validation. `load` is int64 `[n_layer, E]`, the number of tokens per expert, or None if
    there are no experts or no gradient. `seconds` is the computing time on the worker. `value` is
    the result of a task.
    """

    key: Key
    losses: list[float]
    parts: list[Any]
    grads: Mapping[str, np.ndarray]
    load: np.ndarray | None
    seconds: float
    value: Any = None

    def digest(self) -> str:
        """Return the hex sha256 of all numbers in this answer that the run uses."""
        h = hashlib.sha256(np.array(self.losses, "<f8").tobytes())
        for name in sorted(self.grads):
            h.update(name.encode())
            h.update(self.grads[name].tobytes())
        if self.load is not None:
            h.update(self.load.tobytes())
        return h.hexdigest()


@dataclass(frozen=True)
class Plan:
    """The information about a run that a worker needs.

    `path` (absolute), `sha256` and `size` describe the base model file. `fingerprint` is the result
    of `model_fingerprint`, `hp` is the repr of the model's `hp`, and `constants` contains arguments
    for `load_model`. `shapes` contains the shapes of A and B for each base tensor. `trunk` is the
    key and layer of the cache of frozen blocks, or None for no cache. `threads` is the number of
    threads, or 0 to use all cores of the machine.
    """

    path: str
    sha256: str
    size: int
    fingerprint: str
    hp: str
    constants: Mapping[str, Any]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    alpha: float
    lora_r: int
    limits: Limits
    batch: int
    checkpointing: bool
    kept: int
    dropout: float
    seed: int
    objective: Objective
    trunk: tuple[str, int] | None = None
    threads: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)


def mixed_line(name: str, here: Answer, there: Answer) -> str:
    """Return a message that compares `here`, our answer, with `there`, from another CPU."""
    loss = abs(sum_of(there.losses) - sum_of(here.losses)) / max(abs(sum_of(here.losses)), 1e-30)
    ours, theirs = (
        np.concatenate([x.grads[key].ravel() for key in sorted(x.grads)]).astype(np.float64)
        for x in (here, there)
    )
    gradient = float(np.linalg.norm(theirs - ours)) / max(float(np.linalg.norm(ours)), 1e-30)
    same = (
        "the results are bit-identical"
        if here.digest() == there.digest()
        else (
            f"the relative difference is {loss:.1e} in the loss and {gradient:.1e} in the gradient"
        )
    )
    return (
        f"worker {name} has a different CPU; this machine recomputed the worker's first block: "
        f"{same}"
    )


def computed(work: Work, unit: Unit, key: Key, check: Check = None) -> Answer:
    """Compute a unit, and return an answer whose arrays are copies.

    The objective's sums must be 0 at the start, so that the answer covers only this unit.
    """
    start = time.perf_counter()
    if isinstance(unit, Job):
        value = unit.task.run(work, check)
        return Answer(key, [], [], {}, None, time.perf_counter() - start, value)
    parts: list[Any] = []
    losses = compute(work, unit, check, lambda: parts.append(work.objective.take_part()))
    grads: dict[str, np.ndarray] = {}
    load = None
    if unit.gradient:
        grads = {name: g.copy() for name, g in work.bound.grads.items()}
        load = None if work.bound.load is None else work.bound.load.copy()
    return Answer(key, losses, parts, grads, load, time.perf_counter() - start)


class Worker:
    """An implementation of `Work` for one worker process."""

    def __init__(self, plan: Plan, path: str, say: Callable[[str], None] = print) -> None:
        """Open the model at `path`.

        Raises `NbllamaError` if the model cannot be opened or is not the one in the plan.
        """
        self.plan, self.iteration = plan, 0
        self.model: Model = load_model(path, **plan.constants)
        if model_fingerprint(self.model.gguf) != plan.fingerprint:
            raise NbllamaError(f"{shown(path)} is a different base model")
        if repr(self.model.hp) != plan.hp:
            raise NbllamaError(
                "the model in memory was loaded with constants that differ from the run's "
                "options; pass the constants to the run, not to load_model"
            )
        pairs = {
            name: Pair(np.zeros(a, np.float32), np.zeros(b, np.float32))
            for name, (a, b) in plan.shapes.items()
        }
        self.adapter = Adapter(self.model.hp.arch, plan.alpha, plan.lora_r, pairs)
        self.bound = Bound(self.model, self.adapter, trained=True)
        self.limits, self.batch, self.objective = plan.limits, plan.batch, plan.objective
        self.acts = self.model.activations(
            self.adapter, plan.limits.computed, plan.limits.trained,
            checkpointing=plan.checkpointing, kept=plan.kept, dropout=plan.dropout > 0,
        )  # fmt: skip
        self.buffers = self.model.loss_buffers(self.adapter, plan.limits.trained)
        self.trunk: Trunk | None = None
        self._step = -1
        if plan.trunk is not None:
            key, layer = plan.trunk
            fd, name = tempfile.mkstemp(prefix="nbllama-trunk-", suffix=".cache")
            os.close(fd)
            width = self.model.hp.n_embd
            self.trunk = TrunkCache(name, key, layer=layer, width=width, say=say)
            with suppress(OSError):  # the open file has no name and leaves nothing on disk
                os.unlink(name)

    def laid_out(self, batches: list[Any]) -> list[Any]:
        """Return the batches unchanged, because they arrive already laid out."""
        return batches

    def set_dropout(self, micro: int) -> None:
        """Set the dropout masks for micro-batch `micro` of the step, if dropout is enabled."""
        if self.plan.dropout:
            self.bound.dropout = dropout_for(
                self.plan.dropout, self.plan.seed, self.iteration, micro
            )

    def compute(
        self, unit: Unit, attempt: int, point: float, params: Mapping[str, np.ndarray]
    ) -> Answer:
        """Compute a unit with these parameters.

        `point` is the objective's reference point. The caller owns the arrays in the answer.
        """
        own = self.adapter.parameters()
        if own.keys() != params.keys():
            raise ValueError("the received parameters are not those of this run")
        for name, x in own.items():
            np.copyto(x, params[name], casting="no")
        self.bound.refresh()
        self.iteration = unit.step
        self.objective.point = point
        self.objective.take_part()
        return computed(self, unit, Key(unit.step, unit.number, attempt))


def facts() -> dict[str, str]:
    """Return the properties that must match so that all machines get bit-identical results."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"nbllama": __version__, "python": python, **environment(), **more_of_environment()}


_OF_CPU = ("cpu", "cpu features")


def misfit(mine: Mapping[str, str], theirs: Mapping[str, str], *, mixed_cpu: bool) -> str:
    """Return why a worker cannot join, or "" if it can; `mixed_cpu` allows different CPUs."""
    for name, value in mine.items():
        other = theirs.get(name, "none")
        if value == other or (mixed_cpu and name in _OF_CPU):
            continue
        more = (
            "; --allow-mixed-cpu accepts this, but results may not be bit-identical"
            if name in _OF_CPU
            else ""
        )
        return f"{name} is {other} on the worker, but {value} here{more}"
    return ""


def other_cpu(mine: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Return whether the two machines have different CPUs."""
    return any(mine.get(name) != theirs.get(name) for name in _OF_CPU)


def file_sha256(path: str) -> str:
    """Return the hex sha256 of a file. Raises `OSError` if it cannot be read."""
    h = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            h.update(piece)
    return h.hexdigest()


def find_model(plan: Plan, folder: str) -> str:
    """Return the path to the base model on this machine, or "" if the model must be copied.

    The path in the plan is tried first, followed by all files in `folder` and its subfolders. A
    file is the model if its size and sha256 match.
    """
    candidates = [plan.path]
    if folder:
        for where, _, names in os.walk(os.path.expanduser(folder)):
            candidates += [os.path.join(where, name) for name in sorted(names)]
    for path in candidates:
        try:
            if os.path.getsize(path) == plan.size and file_sha256(path) == plan.sha256:
                return path
        except OSError:
            continue
    return ""
