"""Simulate a run on many machines: the scheduler of `--ray`, with a clock and a network of numbers.

Every worker has a machine of its own; the first one is that of the driver. Parameters and gradients
pass the driver's link, which has 1 Gbit/s in each direction, one after another. Times of a
micro-batch vary by `JITTER`. The time of a step is compared with that of one machine.

    python -m scripts.many_parts.scale --tokens-per-second 20

prints a table for docs/results/many-machines.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.pool import Event
from nbllama.train.blocks.spread import Spread
from nbllama.train.blocks.worker import Answer, Key
from nbllama.train.objective import TokenLoss
from nbllama.train.run.many import LINK

WORKERS = (8, 16, 32, 64)
BLOCKS = (1, 2, 4, 8, 16)
JITTER = 0.05
STEPS = 5


def gradient_bytes(rank: int) -> int:
    """Return the size of the gradient of a 7B Llama, with pairs on all linear layers."""
    width, hidden, layers = 4096, 11008, 32
    of_layer = 4 * (width + width) + 3 * (width + hidden)
    return 4 * rank * layers * of_layer


class Network:
    """A `Pool` of n simulated workers. seconds: of a micro-batch. n_bytes: of the gradient."""

    def __init__(self, n: int, seconds: float, n_bytes: int, seed: int = 1) -> None:
        self.now = 0.0
        self.others: set[str] = set()
        self._names = [f"{i}" for i in range(n)]
        self._seconds, self._transfer = seconds, n_bytes / LINK
        self._rng = random.Random(seed)
        self._missing: set[str] = set()  # workers without the parameters of the step
        self._out = self._in = 0.0  # when each direction of the link is free
        self._finished: dict[str, tuple[float, Key]] = {}

    def begin(self, params: Mapping[str, np.ndarray] | None) -> Sequence[str]:
        if params is not None:
            self._missing = set(self._names[1:])
        return []

    def workers(self) -> list[str]:
        return self._names

    def start(self, worker: str, unit: Unit, attempt: int, point: float) -> None:
        at = self.now
        if worker in self._missing:
            self._missing.remove(worker)
            self._out = at = max(at, self._out) + self._transfer
        factor = 1 + JITTER * self._rng.uniform(-1, 1)
        at += self._seconds * len(unit.batches) * factor  # type: ignore[union-attr]
        self._finished[worker] = (at, Key(unit.step, unit.number, attempt))

    def wait(self, seconds: float) -> list[Event]:
        if not self._finished:
            return []
        worker = min(self._finished, key=lambda name: self._finished[name][0])
        at, key = self._finished.pop(worker)
        if worker != self._names[0]:
            self._in = at = max(at, self._in) + self._transfer
        self.now = max(self.now, at)
        return [Event(worker, Answer(key, [0.0], [], {}, None, 0.0))]

    def ban(self, worker: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def step_seconds(n: int, block: int, per_worker: int, seconds: float, n_bytes: int) -> float:
    """Return the mean time of a step with `per_worker` blocks for each of n workers."""
    pool = Network(n, seconds, n_bytes)
    spread = Spread(pool, block, say=print, clock=lambda: pool.now)
    adapter = SimpleNamespace(parameters=dict)
    bound = SimpleNamespace(grads={}, load=None)
    batches: list[Any] = [SimpleNamespace(n_tokens=1)] * (n * block * per_worker)
    for i in range(STEPS):
        work: Any = SimpleNamespace(
            objective=TokenLoss(), iteration=i, adapter=adapter, bound=bound
        )
        spread.evaluate(work, batches, 1, None)
    return pool.now / STEPS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens-per-second", type=float, required=True, help="of one machine")
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch")
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    n_bytes, seconds = gradient_bytes(args.rank), args.tokens / args.tokens_per_second
    print(f"gradient {n_bytes / 1e6:.0f} MB, micro-batch {seconds:.1f} s")
    print("| workers | blocks per worker | " + " | ".join(f"block {b}" for b in BLOCKS) + " |")
    print("|---|---|" + "---|" * len(BLOCKS))
    for n in WORKERS:
        for per_worker in (1, 2):
            cells = []
            for block in BLOCKS:
                found = step_seconds(n, block, per_worker, seconds, n_bytes)
                cells.append(f"{seconds * block * per_worker / found:.2f}")
            print(f"| {n} | {per_worker} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
