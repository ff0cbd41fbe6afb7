"""What a group of workers offers to a run, whatever connects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nbllama.train.blocks.compute import Block
from nbllama.train.blocks.worker import Answer


@dataclass(frozen=True)
class Event:
    """News of a worker: the answer to its block, or None with the reason why it is lost."""

    worker: str
    answer: Answer | None
    reason: str = ""


class Pool(Protocol):
    """Workers by name. A worker computes one block at a time."""

    def begin(self, params: Mapping[str, np.ndarray]) -> Sequence[str]:
        """Begin a step with these parameters; return lines about machines that joined or left."""
        ...

    def workers(self) -> list[str]:
        """Return the names of the workers that can be used."""
        ...

    def start(self, worker: str, block: Block, attempt: int, point: float) -> None:
        """Send a block to a worker that has none."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return news, after at most `seconds`."""
        ...

    def drop(self, worker: str) -> None:
        """Never use this worker again."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
