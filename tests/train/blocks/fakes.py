"""Workers in this process that die, are slow, answer late, or compute other bits."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbllama.model.passes import Model
from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.pool import Event
from nbllama.train.blocks.spread import Spread
from nbllama.train.blocks.worker import Plan, Worker, facts
from nbllama.train.run.many import plan_of
from nbllama.train.trainer import Trainer


def travelled(x: Any) -> Any:
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(x))


class Clock:
    """Seconds that only `wait` adds to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Call:
    """A unit that a worker has; `at`: when its answer arrives."""

    unit: Unit
    attempt: int
    point: float
    at: float
    params: Mapping[str, np.ndarray]


Fault = Callable[["FakePool", str, Any], str | None]


class FakePool:
    """Workers w0, w1, ...; the one that was asked last answers first.

    `fault` returns "" for an answer after a second, "die", "slow", "nan" or "wrong". All that
    travels is pickled. log: worker, step and number of each gradient block; kinds: of every unit.
    """

    def __init__(self, trainer: Trainer, n: int, fault: Fault | None = None, **more: Any) -> None:
        self.clock = Clock()
        self.plan: Plan = travelled(plan_of(trainer, facts(), threads=1, **more))
        self.fault = fault
        self.alive: dict[str, Worker] = {}
        self.calls: dict[str, Call] = {}
        self.log: list[tuple[str, int, int]] = []
        self.kinds: list[tuple[str, str]] = []  # with the worker
        self.banned: list[str] = []
        self.others: set[str] = set()
        self.n_params = 0  # how often the parameters were sent
        self.joining: list[str] = []
        self._spare: list[Worker] = []
        self._number = 0
        for _ in range(n):
            self.join()

    def join(self) -> str:
        name = f"w{self._number}"
        self._number += 1
        self.alive[name] = self._spare.pop() if self._spare else self._made()
        return name

    def _made(self) -> Worker:
        return Worker(travelled(self.plan), self.plan.path)

    def begin(self, params: Mapping[str, np.ndarray] | None) -> Sequence[str]:
        if params is not None:
            self.params = {name: x.copy() for name, x in params.items()}
            self.n_params += 1
        joined, self.joining = [self.join() for _ in self.joining], []
        return [f"worker {name} joined" for name in joined]

    def workers(self) -> list[str]:
        return list(self.alive)

    def start(self, worker: str, unit: Unit, attempt: int, point: float) -> None:
        assert worker in self.alive and worker not in self.calls
        kind = self.fault(self, worker, unit) if self.fault is not None else ""
        self.kinds.append((worker, unit.kind))
        if unit.gradient:
            self.log.append((worker, unit.step, unit.number))
        after = {"slow": 1e4, "die": 0.5}.get(kind or "", 1.0)
        call = Call(travelled(unit), attempt, point, self.clock.now + after, self.params)
        self.calls[worker] = call
        self._kinds = getattr(self, "_kinds", {}) | {worker: kind}

    def wait(self, seconds: float) -> list[Event]:
        self.clock.now += max(seconds, 1.0)
        ready = [w for w, call in self.calls.items() if call.at <= self.clock.now]
        return [self._event(worker) for worker in reversed(ready)]

    def _event(self, worker: str) -> Event:
        call, kind = self.calls.pop(worker), self._kinds[worker]
        if kind == "die":
            self._spare.append(self.alive.pop(worker))
            return Event(worker, None, "killed by the test")
        done = self.alive[worker].compute(call.unit, call.attempt, call.point, call.params)
        found = travelled(done)
        if kind == "nan":
            found = replace(found, losses=[float("nan")])
        if kind == "wrong":
            name = next(iter(found.grads))
            found.grads[name].flat[0] += 1
        return Event(worker, found)

    def ban(self, worker: str) -> None:
        self.banned.append(worker)
        self._spare.append(self.alive.pop(worker))
        self.calls.pop(worker, None)

    def close(self) -> None:
        self.alive.clear()


def spread(t: Trainer, pool: FakePool, size: int, **more: Any) -> list[str]:
    """Let `pool` compute the steps of `t`; return the lines for the user, which grow."""
    lines: list[str] = []
    t.steps = Spread(pool, size, say=lines.append, clock=pool.clock, **more)
    return lines


__all__ = ["FakePool", "Model", "spread"]
