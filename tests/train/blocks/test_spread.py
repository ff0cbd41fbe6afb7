"""Workers that compute the blocks of a step: the same bits, whatever happens to them."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest

from nbllama.model.passes import Model
from nbllama.train.blocks.compute import Block
from nbllama.train.blocks.spread import NoWorkers
from nbllama.train.trainer import Trainer
from tests.train.blocks.fakes import FakePool, spread
from tests.train.blocks.test_bits import made
from tests.train.toy_runs import random_rows, same_bits, state_of, toy_model

STEPS = 3
OPTIONS: dict[str, Any] = {"grad_acc": 5, "batch": 2, "block": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("toy"))


def run(t: Trainer, steps: int = STEPS) -> list[float]:
    return [t.step().loss for _ in range(steps)]


def same_run(model: Model, pool_fault: Any, n: int = 3, **more: Any) -> tuple[FakePool, list[str]]:
    """Run here and with `n` workers; assert the same bits; the pool and its lines."""
    options = OPTIONS | more.pop("options", {})
    here, there = made(model, **options), made(model, **options)
    pool = FakePool(there, n, pool_fault)
    lines = spread(there, pool, options["block"], **more)
    assert run(here) == run(there)
    a, b = state_of(here), state_of(there)
    assert same_bits(a.arrays, b.arrays) and a.counters == b.counters
    return pool, lines


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_any_number_of_workers(model: Model, n: int) -> None:
    pool, lines = same_run(model, None, n)
    assert {worker for worker, _, _ in pool.log} == {f"w{i}" for i in range(n)}
    assert not lines


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.3}, {"share_prompts": True}, {"block": 2}, {"block": 4}, {"block": 0}],
    ids=str,
)
def test_every_kind_of_step(model: Model, options: dict[str, Any]) -> None:
    same_run(model, None, 2, options=options)


@pytest.mark.parametrize("seed", range(5))
def test_workers_that_die_at_random(model: Model, seed: int) -> None:
    rng = random.Random(seed)

    def fault(pool: FakePool, worker: str, block: Block) -> str:
        if rng.random() < 0.3:
            pool.joining.append("one more")
            return "die"
        return ""

    pool, lines = same_run(model, fault)
    assert any("lost the worker" in line and "killed by the test" in line for line in lines)
    assert len({worker for worker, _, _ in pool.log}) > 3


def test_a_slow_worker_is_not_waited_for(model: Model) -> None:
    pool, lines = same_run(model, lambda pool, w, b: "slow" if (w, b.step) == ("w1", 1) else "")
    late = [line for line in lines if "has not answered" in line]
    assert len(late) == 1 and "w1" in late[0]
    # the limit is 60 s where five times the median is less
    assert 60 <= pool.clock.now < 1000


def test_a_late_answer_is_dropped(model: Model) -> None:
    here, there = made(model, **OPTIONS), made(model, **OPTIONS)
    pool = FakePool(there, 2, lambda pool, w, b: "slow" if (w, b.step) == ("w1", 0) else "")
    spread(there, pool, 1)
    first = run(there, 1)
    for call in pool.calls.values():
        call.at = 0.0  # it answers in the next step
    assert run(here) == first + run(there, STEPS - 1)
    assert same_bits(state_of(here).arrays, state_of(there).arrays)
    assert there.steps.dropped == 1
    assert ("w1", 1) in {(worker, step) for worker, step, _ in pool.log}  # it works again


def test_every_worker_is_too_slow(model: Model) -> None:
    pool, lines = same_run(model, lambda pool, w, b: "slow", 2)
    assert len(pool.log) == 2
    assert len([line for line in lines if "has not answered" in line]) == 2


def test_without_workers_this_process_computes(model: Model) -> None:
    pool, lines = same_run(model, lambda pool, w, b: "die", 2)
    assert pool.workers() == []
    assert lines[-1] == "no worker is left: this process computes until one joins"


def test_without_workers_a_run_can_wait_and_stop(model: Model) -> None:
    t = made(model, **OPTIONS)
    pool = FakePool(t, 1, lambda pool, w, b: "die" if b.step == 1 else "")
    spread(t, pool, 1, worker_timeout=30.0)
    t.step()
    before = state_of(t)
    with pytest.raises(NoWorkers, match="for 30 s"):
        t.step()
    after = state_of(t)
    assert same_bits(before.arrays, after.arrays) and before.counters == after.counters


def test_a_worker_that_joins_while_the_run_waits(model: Model) -> None:
    def fault(pool: FakePool, worker: str, block: Block) -> str:
        if worker == "w0":
            pool.joining.append("w1")
            return "die"
        return ""

    _, lines = same_run(model, fault, 1, worker_timeout=30.0)
    assert "worker w1 joined" in lines


def test_nan_skips_the_step(model: Model) -> None:
    t = made(model, **OPTIONS)
    pool = FakePool(t, 2, lambda pool, w, b: "nan" if (b.step, b.number) == (1, 2) else "")
    spread(t, pool, 1)
    t.step()
    before = state_of(t)
    assert t.step().skipped
    assert same_bits(before.arrays, state_of(t).arrays)
    assert not t.step().skipped


def test_an_audit_finds_a_worker_with_other_bits(model: Model) -> None:
    bad = lambda pool, w, b: "wrong" if w == "w1" and b.step == 1 else ""  # noqa: E731
    pool, lines = same_run(model, bad, 3, audit=1)
    (line,) = [line for line in lines if "audit" in line]
    assert "w1" in line and "of step 2" in line
    assert sorted(pool.workers()) == ["w0", "w2"]


def test_an_audit_with_one_worker_uses_this_process(model: Model) -> None:
    pool, lines = same_run(model, None, 1, audit=2)
    assert not lines and len(pool.log) == STEPS * 5


def test_an_audit_never_asks_the_same_worker_twice(model: Model) -> None:
    pool, _ = same_run(model, None, 3, audit=1)
    asked = [(step, number) for _, step, number in pool.log]
    assert len(asked) == 2 * len(set(asked)) == 2 * STEPS * 5
    assert len(set(pool.log)) == len(pool.log)


def test_validation_has_the_same_bits(model: Model) -> None:
    data = random_rows(model, [4, 9, 6, 11, 3], seed=2)
    here, there = (made(model, **OPTIONS, validation=data) for _ in range(2))
    pool = FakePool(there, 2)
    spread(there, pool, 1)
    assert here.validation_loss() == there.validation_loss()
    assert pool.log


def test_too_few_micro_batches_are_reported(model: Model) -> None:
    _, lines = same_run(model, None, 6)
    assert lines == [
        "warning: a step has 5 micro-batches in 5 blocks of 1, but there are 6 workers: "
        "--grad-acc 6 or more gives each of them work"
    ]
    _, lines = same_run(model, None, 2, options={"block": 8})
    assert "--block 2 gives each of them work" in lines[0]


def test_the_time_of_workers(model: Model) -> None:
    t = made(model, **OPTIONS)
    pool = FakePool(t, 2)
    spread(t, pool, 1)
    t.step()
    rows = t.steps.rows()
    assert [row["worker"] for row in rows] == ["w0", "w1"]
    assert sum(row["blocks"] for row in rows) == 5
    assert all(row["tokens_per_s"] > 0 and 0 < row["share"] <= 1 for row in rows)


def test_ray_is_not_imported(model: Model) -> None:
    assert np.float32 is not None and "ray" not in sys.modules
