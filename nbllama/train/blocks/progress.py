"""The state of a step (or an evaluation) while the workers compute it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nbllama.train.blocks.compute import Unit
from nbllama.train.blocks.worker import Answer


@dataclass
class Running:
    """A unit assigned to a worker; `late` says whether the unit has been queued again."""

    unit: Unit
    attempt: int
    start: float
    audit: bool = False
    late: bool = False


@dataclass
class Progress:
    """The units to compute, their answers, and the workers that gave the answers.

    The dicts are keyed by unit number. `todo` contains the queued units, each with a flag that is
    True for an audit. `wanted` contains the numbers of the units to audit. If the two answers in an
    audit differ, `again` is true, and the whole step must be computed again.
    """

    todo: deque[tuple[Unit, bool]]
    units: dict[int, Unit]
    done: dict[int, Answer] = field(default_factory=dict)
    by: dict[int, str] = field(default_factory=dict)
    audits: dict[int, Answer] = field(default_factory=dict)
    audited_by: dict[int, str] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)
    again: bool = False

    @staticmethod
    def of(units: Sequence[Unit]) -> Progress:
        """Return the initial state, in which all units are queued."""
        return Progress(deque((unit, False) for unit in units), {u.number: u for u in units})

    @property
    def complete(self) -> bool:
        """Return whether all answers have arrived, including answers from audits."""
        return len(self.done) == len(self.units) and self.wanted <= self.audits.keys()

    def has(self, unit: Unit) -> bool:
        """Return whether a unit belongs to this step rather than to an earlier one."""
        return self.units.get(unit.number) is unit

    def needs(self, unit: Unit, audit: bool) -> bool:
        """Return whether the answer for a unit is still missing."""
        return unit.number not in (self.audits if audit else self.done)

    def back(self, unit: Unit, audit: bool) -> None:
        """Put a unit back at the front of the queue if its answer is missing."""
        if self.needs(unit, audit):
            self.todo.appendleft((unit, audit))

    def next_for(self, worker: str) -> tuple[Unit, bool] | None:
        """Take the next unit that this worker may compute; a worker never audits its own units."""
        for _ in range(len(self.todo)):
            unit, audit = self.todo.popleft()
            if not self.needs(unit, audit):
                continue
            if audit and self.by.get(unit.number) == worker:
                self.todo.append((unit, audit))
                continue
            return unit, audit
        return None

    def next_here(self) -> tuple[Unit, bool] | None:
        """Take the next unit for this process, which may audit any worker."""
        while self.todo:
            unit, audit = self.todo.popleft()
            if self.needs(unit, audit):
                return unit, audit
        return None

    def keep(self, unit: Unit, answer: Answer, *, worker: str, audit: bool) -> bool:
        """Store an answer, and queue the unit if it must be audited.

        Returns False if the unit already has an answer.
        """
        if not self.needs(unit, audit):
            return False
        answers, names = (self.audits, self.audited_by) if audit else (self.done, self.by)
        answers[unit.number], names[unit.number] = answer, worker
        if not audit and unit.number in self.wanted and not self.again:
            self.todo.append((unit, True))
        return True
