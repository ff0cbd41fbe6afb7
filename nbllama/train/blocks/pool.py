"""What a group of workers offers to a run, whatever connects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.worker import Answer


@dataclass(frozen=True)
class Event:
    """News of a worker: the answer to its unit, or None with the reason why it is lost."""

    worker: str
    answer: Answer | None
    reason: str = ""


class Pool(Protocol):
    """Workers by name. A worker computes one unit (a block or a task) at a time."""

    others: set[str]  # workers with another CPU, whose first block is compared

    def begin(self, params: Mapping[str, np.ndarray] | None) -> Sequence[str]:
        """Begin with these parameters; return lines about machines that joined or left.

        None: the parameters are those of the last call.
        """
        ...

    def workers(self) -> list[str]:
        """Return the names of the workers that can be used."""
        ...

    def start(self, worker: str, unit: Unit, attempt: int, point: float) -> None:
        """Send a unit to a worker that has none."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return news, after at most `seconds`."""
        ...

    def ban(self, worker: str) -> None:
        """Never use this worker's machine again; there is no news of the worker afterwards."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
