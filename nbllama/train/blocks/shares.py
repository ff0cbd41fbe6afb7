"""The work that each worker does in a run: units, tokens per second, and fraction of time busy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nbllama.report.log import WorkerRow


@dataclass
class Share:
    """The work done by one worker; `seconds` is the time it spent computing."""

    blocks: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def row(self, worker: str, wall: float) -> WorkerRow:
        """Return the row to display for `worker`; for `wall`, see `Shares`."""
        return WorkerRow(
            worker,
            self.blocks,
            round(self.tokens / max(self.seconds, 1e-9), 1),
            round(min(1.0, self.seconds / max(wall, 1e-9)), 4),
        )


class Shares:
    """The work done by all workers over a period.

    `wall` is the time in seconds during which there was work to do.
    """

    def __init__(self) -> None:
        self.wall = 0.0
        self._of: dict[str, Share] = {}

    def add(self, worker: str, n_tokens: int, seconds: float) -> None:
        """Add a unit (a block or a task) that a worker has computed."""
        share = self._of.setdefault(worker, Share())
        share.blocks += 1
        share.tokens += n_tokens
        share.seconds += seconds

    def rows(self) -> Sequence[WorkerRow]:
        """Return a row for each worker that has computed at least one unit."""
        return [share.row(name, self.wall) for name, share in sorted(self._of.items())]
