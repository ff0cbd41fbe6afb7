"""The object in a worker process whose methods the driver calls remotely."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from nbllama.kernels.cores import physical_cores, use_threads
from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.copies import Copy
from nbllama.train.blocks.worker import Answer, Plan, Worker, facts, find_model


class Actor:
    """A worker process whose methods can be called remotely."""

    def __init__(self, threads: int) -> None:
        use_threads(threads or physical_cores())
        self._worker: Worker | None = None
        self._copy: Copy | None = None

    def facts(self) -> dict[str, str]:
        """Return the properties that must match on all machines, and the process id."""
        return {**facts(), "pid": str(os.getpid())}

    def open(self, plan: Plan, folder: str, same_machine: bool) -> bool:
        """Open the base model; return False if this machine has no copy of it."""
        path = plan.path if same_machine else find_model(plan, folder)
        if path:
            self._worker = Worker(plan, path, say=_ignore)
        return bool(path)

    def receive(self, plan: Plan, folder: str, piece: bytes) -> None:
        """Append a chunk of the base model to the copy in `folder`."""
        if self._copy is None:
            self._copy = Copy(folder, plan.sha256, plan.size)
        self._copy.append(piece)

    def open_copy(self, plan: Plan) -> None:
        """Verify the sha256 of the complete copy, and open it."""
        assert self._copy is not None
        self._worker = Worker(plan, self._copy.finish(), say=_ignore)

    def compute(
        self, unit: Unit, attempt: int, point: float, params: Mapping[str, np.ndarray]
    ) -> Answer:
        """Compute one unit."""
        assert self._worker is not None
        return self._worker.compute(unit, attempt, point, params)


def _ignore(text: str) -> None:
    """Ignore a message about the trunk cache, because the cache does not affect the result."""
