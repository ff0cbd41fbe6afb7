"""Training steps whose blocks are computed by a `Pool` of workers.

The workers also compute validation batches, answers to sample prompts and, for GRPO, sampled
answers and their reference log-probabilities.

The driver adds up the blocks in ascending order, regardless of which worker computed them or when
they arrived. The results are therefore bit-identical to those from `compute.Here`. If no worker is
left, the driver computes the blocks itself.

| event | what happens |
|---|---|
| a worker is lost | another worker computes its block |
| no answer within max(60 s, 5 x the median time of a block) | another worker also receives the block; the first answer counts, and later answers, recognised by (step, block, attempt), are dropped |
| no worker is left | this process computes the blocks; if `worker_timeout` is set, it waits that long for a worker instead, and raises `NoWorkers` if none joins |
| a loss or gradient is not finite | the step is skipped, as on a single machine |
| the answers in an audit differ | this process computes the block; the machine that gave the wrong answer is no longer used, and the step starts again |
"""  # noqa: E501

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from nbllama.data.batch import Batch
from nbllama.errors import NbllamaError
from nbllama.report.log import WorkerRow
from nbllama.train.blocks.compute import Job, StepWork, Total, Unit, split, sum_of, too_few
from nbllama.train.blocks.pool import Event, Pool
from nbllama.train.blocks.progress import Progress, Running
from nbllama.train.blocks.shares import Shares
from nbllama.train.blocks.worker import Answer, Key, computed, mixed_line
from nbllama.train.objective import Check, Task

LEAST_WAIT, TIMES_MEDIAN, POLL = 60.0, 5.0, 0.2  # LEAST_WAIT and POLL are in seconds
HERE = "this process"


class NoWorkers(NbllamaError):
    """Raised if no worker was available for `--worker-timeout` seconds; the step is discarded."""


class Spread:
    """An implementation of `Steps` that distributes the work among the workers of `pool`."""

    def __init__(
        self,
        pool: Pool,
        size: int,
        *,
        say: Callable[[str], None],
        audit: int = 0,
        worker_timeout: float = 0.0,
        least_wait: float = LEAST_WAIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use the workers of `pool`, with `size` micro-batches per block (0 for a whole step).

        If `audit` is N, one block in N is also computed by a second worker. `worker_timeout` is the
        number of seconds to wait for a worker if none are left; if it is 0, this process computes
        the blocks immediately.
        """
        self.pool, self.size, self.say = pool, size, say
        self.audit, self.worker_timeout, self.least_wait = audit, worker_timeout, least_wait
        self.clock = clock
        self.dropped = 0  # answers that arrived too late
        self._running: dict[str, Running] = {}
        self._attempts = 0
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=200))
        self._count = 0  # number of blocks so far, which determines the blocks to audit
        self._alone = self._told_few = False
        self._sent = -1  # the iteration whose parameters were passed to the pool
        self._all, self._recent = Shares(), Shares()

    def evaluate(
        self, work: StepWork, batches: Sequence[Batch], trained: int, check: Check
    ) -> float:
        """Compute a step; see `Steps.evaluate`."""
        sent = [work.objective.sent(batch) for batch in batches]
        blocks = split(sent, self.size, step=work.iteration, trained=trained)
        self._say_if_few(batches)
        answers = self._answers(work, blocks, check)
        total = Total()
        for block in blocks:
            answer = answers.pop(block.number)
            for part in answer.parts:
                work.objective.add_part(part)
            total.add(sum_of(answer.losses), answer.grads, answer.load)
            if total.ended:
                break
        total.put(work.bound)
        return total.loss

    def losses(self, work: StepWork, batches: Sequence[Batch], check: Check) -> list[float]:
        """Compute losses, one batch per block; see `Steps.losses`."""
        sent = [work.objective.sent(batch) for batch in batches]
        blocks = split(sent, 1, step=work.iteration, trained=1, gradient=False)
        answers = self._answers(work, blocks, check)
        found: list[float] = []
        for block in blocks:
            answer = answers[block.number]
            for part in answer.parts:
                work.objective.add_part(part)
            found += answer.losses
        return found

    def each(self, work: StepWork, tasks: Sequence[Task], check: Check) -> list[Any]:
        """Compute tasks, one per worker at a time; see `Steps.each`."""
        jobs = [Job(work.iteration, i, task) for i, task in enumerate(tasks)]
        answers = self._answers(work, jobs, check)
        return [answers[job.number].value for job in jobs]

    def report(self) -> Sequence[WorkerRow]:
        """Return what each worker has computed since the last call."""
        recent, self._recent = self._recent, Shares()
        return recent.rows()

    def summary(self) -> Sequence[WorkerRow]:
        """Return what each worker has computed so far."""
        return self._all.rows()

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def _say_if_few(self, batches: Sequence[Batch]) -> None:
        line = too_few(len(batches), self.size, len(self.pool.workers()))
        if line and not self._told_few:
            self._told_few = True
            self.say(f"warning: {line}")

    def _answers(self, work: StepWork, units: Sequence[Unit], check: Check) -> dict[int, Answer]:
        """Distribute the units among the workers, and return the answers, keyed by unit number."""
        start = time.perf_counter()
        while True:
            self._begin(work)
            step = Progress.of(units)
            for unit in units:
                if self.audit and unit.gradient:
                    self._count += 1
                    if self._count % self.audit == 0:
                        step.wanted.add(unit.number)
            while not step.complete and not step.again:
                if check is not None:
                    check()
                self._assign(work, step, check)
                for event in self.pool.wait(POLL):
                    self._take(work, step, event)
                self._queue_overdue(step)
            if not step.again:
                break
            # copied so that `Progress.has` rejects late answers from before the restart
            units = [replace(unit) for unit in units]
        seconds = time.perf_counter() - start
        self._all.wall += seconds
        self._recent.wall += seconds
        return step.done

    def _begin(self, work: StepWork) -> None:
        """Add new workers, and pass the parameters to the pool once per iteration."""
        new = self._sent != work.iteration
        self._sent = work.iteration
        for line in self.pool.begin(work.adapter.parameters() if new else None):
            self.say(line)

    def _assign(self, work: StepWork, step: Progress, check: Check) -> None:
        """Assign units to idle workers."""
        workers = self.pool.workers()
        if not workers:
            self._without_workers(work, step, check)
            return
        if self._alone:
            self._alone = False
            self.say("workers are available again and will compute the next steps")
        for worker in workers:
            if worker in self._running or (found := step.next_for(worker)) is None:
                continue
            unit, audit = found
            self._attempts += 1
            self._running[worker] = Running(unit, self._attempts, self.clock(), audit)
            self.pool.start(worker, unit, self._attempts, work.objective.point)
        if step.todo and all(running.late for running in self._running.values()):
            # No worker can finish the step: an audit requires a second worker, or all workers are
            # late.
            self._compute_here(work, step, check)

    def _without_workers(self, work: StepWork, step: Progress, check: Check) -> None:
        """Compute a unit in this process, or wait for a worker."""
        if self.worker_timeout:
            self.say(f"no workers left; waiting up to {self.worker_timeout:g} s for one to join")
            end = self.clock() + self.worker_timeout
            while not self.pool.workers():
                if self.clock() > end:
                    raise NoWorkers(
                        f"no worker was available for {self.worker_timeout:g} s (--worker-timeout)"
                    )
                if check is not None:
                    check()
                for event in self.pool.wait(POLL):
                    self._take(work, step, event)
                self._begin(work)
            return
        if not self._alone:
            self._alone = True
            self.say("no workers left; this process computes the steps until one joins")
        self._compute_here(work, step, check)

    def _compute_here(self, work: StepWork, step: Progress, check: Check) -> None:
        if (found := step.next_here()) is not None:
            unit, audit = found
            self._attempts += 1
            answer = self._here(work, unit, check)
            self._store(work, step, unit, HERE, answer=answer, audit=audit)

    def _here(self, work: StepWork, unit: Unit, check: Check) -> Answer:
        """Compute a unit in this process without affecting the measures collected so far."""
        before = work.objective.take_part()
        try:
            return computed(work, unit, Key(unit.step, unit.number, self._attempts), check)
        finally:
            work.objective.take_part()
            work.objective.add_part(before)

    def _take(self, work: StepWork, step: Progress, event: Event) -> None:
        """Handle an event: store the answer, or requeue the unit of a lost worker."""
        running = self._running.pop(event.worker, None)
        answer = event.answer
        if answer is None:
            self.say(f"lost worker {event.worker}: {event.reason}")
            if running is not None and step.has(running.unit):
                step.back(running.unit, running.audit)
            return
        if running is None or running.attempt != answer.key.attempt or not step.has(running.unit):
            self.dropped += 1
            return
        unit = running.unit
        if not running.late:
            self._seconds[unit.kind].append(self.clock() - running.start)
        if unit.gradient and event.worker in self.pool.others:
            self.pool.others.remove(event.worker)
            self.say(mixed_line(event.worker, self._here(work, unit, None), answer))
        for shares in (self._all, self._recent):
            shares.add(event.worker, unit.n_tokens, answer.seconds)
        self._store(work, step, unit, event.worker, answer=answer, audit=running.audit)

    def _store(
        self,
        work: StepWork,
        step: Progress,
        unit: Unit,
        worker: str,
        *,
        answer: Answer,
        audit: bool,
    ) -> None:
        """Store the first answer for a unit; in an audit, compare the two answers."""
        if not step.keep(unit, answer, worker=worker, audit=audit):
            self.dropped += 1
        elif audit and not step.again:
            self._compare(work, step, unit)

    def _compare(self, work: StepWork, step: Progress, unit: Unit) -> None:
        """Compare the two answers of an audit, and ban the worker whose answer is wrong, if any."""
        n = unit.number
        pair = ((step.by[n], step.done[n]), (step.audited_by[n], step.audits[n]))
        digests = {name: answer.digest() for name, answer in pair}
        if len(set(digests.values())) == 1:
            return
        right = self._here(work, unit, None).digest()
        for name, digest in digests.items():
            if digest == right:
                continue
            self.say(
                f"warning: audit: worker {name} gave a wrong result for block {n} of step "
                f"{unit.step + 1}; its machine is no longer used (check its memory), and the step "
                "is recomputed"
            )
            self._running.pop(name, None)
            if name != HERE:
                self.pool.ban(name)
        step.again = True

    def _queue_overdue(self, step: Progress) -> None:
        """Queue a unit again if its worker is taking too long."""
        now = self.clock()
        for worker, running in self._running.items():
            known = self._seconds[running.unit.kind]
            limit = max(self.least_wait, TIMES_MEDIAN * median(known) if known else 0.0)
            if running.late or now - running.start <= limit:
                continue
            running.late = True
            if step.has(running.unit):
                self.say(
                    f"worker {worker} has not answered for {now - running.start:.0f} s; block "
                    f"{running.unit.number} is also being computed elsewhere"
                )
                step.back(running.unit, running.audit)
