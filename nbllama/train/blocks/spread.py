"""The steps of a run whose blocks are computed by a `Pool` of workers.

The driver adds blocks in ascending order, whichever worker computed them and whenever they arrived,
so the bits are those of `compute.Here`. It computes a block itself if no worker is left.

| event | what happens |
|---|---|
| a worker is lost | its block goes to another one |
| no answer within max(60 s, 5 x the median time of a block) | another worker gets the block too; the first answer counts, a later one is dropped by (step, block, attempt) |
| no worker is left | this process computes, or waits `worker_timeout` and raises `NoWorkers` |
| a loss or gradient is not finite | the step is skipped, as on a single machine |
| an audit finds other bits | this process computes the block; the worker that differs is dropped, and the step begins again |
"""  # noqa: E501

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from nbllama.data.batch import Batch
from nbllama.errors import NbllamaError
from nbllama.train.blocks.compute import Block, Check, StepWork, Total, compute, split, sum_of
from nbllama.train.blocks.pool import Event, Pool
from nbllama.train.blocks.worker import Answer, Key

LEAST_WAIT, TIMES_MEDIAN = 60.0, 5.0
POLL = 0.2  # seconds
HERE = "this process"


class NoWorkers(NbllamaError):
    """No worker could be used for `--worker-timeout` seconds; nothing of the step is kept."""


@dataclass
class Share:
    """What a worker did so far."""

    blocks: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class _Running:
    """A block at a worker; `late`: another worker has it too."""

    block: Block
    attempt: int
    start: float
    audit: bool = False
    late: bool = False


@dataclass
class _Step:
    """The state of one step (or validation)."""

    todo: deque[tuple[Block, bool]]  # with whether it is an audit
    blocks: dict[int, Block]
    done: dict[int, Answer] = field(default_factory=dict)
    by: dict[int, str] = field(default_factory=dict)
    audits: dict[int, Answer] = field(default_factory=dict)
    audited_by: dict[int, str] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)  # blocks to audit
    again: bool = False  # a worker was found to be wrong: the step is computed again

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.blocks) and self.wanted <= self.audits.keys()


class Spread:
    """`Steps` by the workers of `pool`."""

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
        """Take the workers of `pool`; `size`: micro-batches per block, 0 for all of a step.

        `audit` N: one block in N is computed by a second worker too. `worker_timeout`: seconds to
        wait for a worker if none is left; 0: compute here at once.
        """
        self.pool, self.size, self.say = pool, size, say
        self.audit, self.worker_timeout, self.least_wait = audit, worker_timeout, least_wait
        self.clock = clock
        self.shares: dict[str, Share] = {}
        self.dropped = 0  # answers that came too late
        self._running: dict[str, _Running] = {}
        self._attempts = 0
        self._seconds: deque[float] = deque(maxlen=200)
        self._count = 0  # blocks so far, for the audit
        self._alone = False
        self._told_few = False
        self.wall = 0.0  # seconds of all steps
        self.after: Callable[[Mapping[str, object]], None] | None = None  # gets a row per step

    def evaluate(
        self, work: StepWork, batches: Sequence[Batch], trained: int, check: Check
    ) -> float:
        """Compute a step; see `Steps.evaluate`."""
        sent = [work.objective.sent(batch) for batch in batches]
        blocks = split(sent, self.size, step=work.iteration, trained=trained)
        self._say_if_few(blocks, batches)
        start = time.perf_counter()
        answers = self._answers(work, blocks, check)
        self.wall += time.perf_counter() - start
        if self.after is not None:
            row = {"event": "workers", "iter": work.iteration + 1, "workers": self.rows()}
            self.after(row)
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
        """Compute losses, a batch per block; see `Steps.losses`."""
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

    def _say_if_few(self, blocks: Sequence[Block], batches: Sequence[Batch]) -> None:
        n = len(self.pool.workers())
        if self._told_few or len(blocks) >= n:
            return
        self._told_few = True
        size = self.size or len(batches)
        if len(batches) < n:
            how = f"--grad-acc {n} or more gives each of them work"
        else:
            fit = 1 << ((len(batches) // n).bit_length() - 1)
            how = f"--block {fit} gives each of them work"
        self.say(
            f"warning: a step has {len(batches)} micro-batches in {len(blocks)} blocks of {size}, "
            f"but there are {n} workers: {how}"
        )

    def _answers(self, work: StepWork, blocks: Sequence[Block], check: Check) -> dict[int, Answer]:
        """Return the answer of each block by its number."""
        while True:
            for line in self.pool.begin(work.adapter.parameters()):
                self.say(line)
            step = _Step(deque((b, False) for b in blocks), {b.number: b for b in blocks})
            for block in blocks:
                self._count += 1
                if self.audit and block.gradient and self._count % self.audit == 0:
                    step.wanted.add(block.number)
            while not step.complete and not step.again:
                if check is not None:
                    check()
                self._assign(work, step, check)
                for event in self.pool.wait(POLL):
                    self._take(work, step, event)
                self._overdue(step)
            if not step.again:
                return step.done
            # copies: what workers still compute for the first try does not count
            blocks = [replace(block) for block in blocks]

    def _assign(self, work: StepWork, step: _Step, check: Check) -> None:
        """Give blocks to the workers that have none."""
        workers = self.pool.workers()
        if not workers:
            self._without_workers(work, step, check)
            return
        if self._alone:
            self._alone = False
            self.say("workers compute again")
        for worker in workers:
            if worker in self._running:
                continue
            for _ in range(len(step.todo)):
                block, audit = step.todo.popleft()
                if not audit and block.number in step.done:
                    break
                if audit and step.by.get(block.number) == worker:
                    step.todo.append((block, audit))  # the second worker must be another one
                    continue
                self._attempts += 1
                now = self.clock()
                self._running[worker] = _Running(block, self._attempts, now, audit)
                self.pool.start(worker, block, self._attempts, work.objective.point)
                break
        if step.todo and all(running.late for running in self._running.values()):
            # nothing that is computed elsewhere can finish the step: an audit needs a second
            # worker, or all of them are late
            self._compute_here(work, step, check)

    def _without_workers(self, work: StepWork, step: _Step, check: Check) -> None:
        """Compute a block here, or wait for a worker."""
        if self.worker_timeout:
            self.say(f"no worker is left; waiting {self.worker_timeout:g} s for one")
            end = self.clock() + self.worker_timeout
            while not self.pool.workers():
                if self.clock() > end:
                    raise NoWorkers(
                        f"no worker could be used for {self.worker_timeout:g} s (--worker-timeout)"
                    )
                if check is not None:
                    check()
                self.pool.wait(POLL)
                for line in self.pool.begin(work.adapter.parameters()):
                    self.say(line)
            return
        if not self._alone:
            self._alone = True
            self.say("no worker is left: this process computes until one joins")
        self._compute_here(work, step, check)

    def _compute_here(self, work: StepWork, step: _Step, check: Check) -> None:
        while step.todo:
            block, audit = step.todo.popleft()
            if audit or block.number not in step.done:
                self._attempts += 1
                answer = self._here(work, block, check)
                self._store(work, step, block, HERE, answer=answer, audit=audit)
                return

    def _here(self, work: StepWork, block: Block, check: Check) -> Answer:
        """Compute a block in this process."""
        start, objective, parts = time.perf_counter(), work.objective, []
        before = objective.take_part()
        try:
            losses = compute(work, block, check, lambda: parts.append(objective.take_part()))
        finally:
            objective.take_part()
            objective.add_part(before)
        grads: dict[str, np.ndarray] = {}
        load = None
        if block.gradient:
            grads = {name: g.copy() for name, g in work.bound.grads.items()}
            load = None if work.bound.load is None else work.bound.load.copy()
        key = Key(block.step, block.number, self._attempts)
        return Answer(key, losses, parts, grads, load, time.perf_counter() - start)

    def _take(self, work: StepWork, step: _Step, event: Event) -> None:
        """Take note of news: an answer, or a lost worker."""
        running = self._running.pop(event.worker, None)
        answer = event.answer
        if answer is None:
            block = None if running is None else running.block
            self.say(f"lost the worker {event.worker}: {event.reason}")
            if running is not None and block is not None and self._is_of(step, block):
                self._back(step, block, running.audit)
            return
        key, block = answer.key, step.blocks.get(answer.key.number)
        if (
            running is None or running.attempt != key.attempt
            or block is None or running.block is not block
        ):  # fmt: skip
            self.dropped += 1
            return
        if not running.late:
            self._seconds.append(self.clock() - running.start)
        share = self.shares.setdefault(event.worker, Share())
        share.blocks += 1
        share.tokens += block.n_tokens
        share.seconds += answer.seconds
        self._store(work, step, block, event.worker, answer=answer, audit=running.audit)

    @staticmethod
    def _is_of(step: _Step, block: Block) -> bool:
        return step.blocks.get(block.number) is block

    @staticmethod
    def _back(step: _Step, block: Block, audit: bool) -> None:
        if audit or block.number not in step.done:
            step.todo.appendleft((block, audit))

    def _store(
        self, work: StepWork, step: _Step, block: Block, worker: str, *, answer: Answer, audit: bool
    ) -> None:
        """Keep an answer, if it is the first; compare the two of an audit."""
        n = block.number
        kept, names = (step.audits, step.audited_by) if audit else (step.done, step.by)
        if n in kept:
            self.dropped += 1
            return
        kept[n], names[n] = answer, worker
        if step.again:
            return
        if not audit:
            if n in step.wanted:
                step.todo.append((block, True))
            return
        if step.done[n].digest() == answer.digest():
            return
        right = self._here(work, block, None).digest()
        pair = ((step.by[n], step.done[n]), (worker, answer))
        wrong = [name for name, found in pair if found.digest() != right]
        for name in wrong:
            self.say(
                f"warning: audit: the worker {name} computed other bits for block {n} of step "
                f"{block.step + 1}; it is not used any more (check its memory), and the step is "
                "computed again"
            )
            self._running.pop(name, None)
            self.pool.drop(name)
        step.again = True

    def _overdue(self, step: _Step) -> None:
        """Queue blocks again whose workers take too long."""
        usual = median(self._seconds) if self._seconds else 0.0
        limit, now = max(self.least_wait, TIMES_MEDIAN * usual), self.clock()
        for worker, running in self._running.items():
            if running.late or now - running.start <= limit:
                continue
            running.late = True
            if self._is_of(step, running.block):
                self.say(
                    f"the worker {worker} has not answered for {now - running.start:.0f} s: "
                    f"block {running.block.number} is computed elsewhere too"
                )
                self._back(step, running.block, running.audit)

    def rows(self) -> list[Mapping[str, object]]:
        """Return a row per worker: blocks, tokens/s, and the share of the time it computed."""
        return [
            {
                "worker": name,
                "blocks": share.blocks,
                "tokens_per_s": round(share.tokens / max(share.seconds, 1e-9), 1),
                "share": round(min(1.0, share.seconds / max(self.wall, 1e-9)), 4),
            }
            for name, share in sorted(self.shares.items())
        ]

    def close(self) -> None:
        """End the workers."""
        self.pool.close()
