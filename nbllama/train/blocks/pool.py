"""The interface of a group of workers, independent of how they are connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.worker import Answer


@dataclass(frozen=True)
class Event:
    """A worker's answer for its unit, or None and a reason if the worker was lost."""

    worker: str
    answer: Answer | None
    reason: str = ""


class Pool(Protocol):
    """A group of named workers, each of which computes one unit (a block or a task) at a time."""

    others: set[str]  # workers with a different CPU whose first block has not been compared yet

    def begin(self, params: Mapping[str, np.ndarray] | None) -> Sequence[str]:
        """Use these parameters from now on; return messages about machines that joined or left.

        If `params` is None, the parameters from the previous call remain in use.
        """
        ...

    def workers(self) -> list[str]:
        """Return the names of the available workers."""
        ...

    def start(self, worker: str, unit: Unit, attempt: int, point: float) -> None:
        """Send a unit to an idle worker."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Wait at most `seconds` for answers and lost workers, and return these events."""
        ...

    def ban(self, worker: str) -> None:
        """Never use this worker's machine again, and ignore further answers from the worker."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
