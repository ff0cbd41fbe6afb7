"""Workers that compute the blocks of a step: the same bits, whatever happens to them."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import NbllamaError, UsageError
from nbllama.model.passes import Model
from nbllama.train.blocks.address import Address, check_token, parse_address, protect_local
from nbllama.train.blocks.compute import Block
from nbllama.train.blocks.copies import Copy
from nbllama.train.blocks.spread import NoWorkers, Spread
from nbllama.train.blocks.worker import Worker, facts, find_model, misfit, other_cpu
from nbllama.train.run.many import plan_of
from nbllama.train.trainer import Trainer
from tests.train.blocks.fakes import FakePool, spread
from tests.train.blocks.test_bits import made
from tests.train.runs import Run, refused
from tests.train.toy_runs import (
    file_bits,
    random_rows,
    run_child,
    same_bits,
    state_of,
    toy_model,
    words,
)

STEPS = 3
OPTIONS: dict[str, Any] = {"grad_acc": 5, "batch": 2, "block": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("toy"))


def train(t: Trainer, steps: int = STEPS) -> list[float]:
    return [t.step().loss for _ in range(steps)]


def same_run(model: Model, pool_fault: Any, n: int = 3, **more: Any) -> tuple[FakePool, list[str]]:
    """Run here and with `n` workers; assert the same bits; the pool and its lines."""
    options = OPTIONS | more.pop("options", {})
    here, there = made(model, **options), made(model, **options)
    pool = FakePool(there, n, pool_fault)
    lines = spread(there, pool, options["block"], **more)
    assert train(here) == train(there)
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
    assert any("lost worker" in line and "killed by the test" in line for line in lines)
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
    first = train(there, 1)
    for call in pool.calls.values():
        call.at = 0.0  # it answers in the next step
    assert train(here) == first + train(there, STEPS - 1)
    assert same_bits(state_of(here).arrays, state_of(there).arrays)
    assert isinstance(there.steps, Spread) and there.steps.dropped == 1
    assert ("w1", 1) in {(worker, step) for worker, step, _ in pool.log}  # it works again


def test_every_worker_is_too_slow(model: Model) -> None:
    pool, lines = same_run(model, lambda pool, w, b: "slow", 2)
    assert len(pool.log) == 2
    assert len([line for line in lines if "has not answered" in line]) == 2


def test_without_workers_this_process_computes(model: Model) -> None:
    pool, lines = same_run(model, lambda pool, w, b: "die", 2)
    assert pool.workers() == []
    assert lines[-1] == "no workers left; this process computes the steps until one joins"


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
    assert sorted(pool.workers()) == ["w0", "w2"] and pool.banned == ["w1"]


def test_an_audit_with_one_worker_uses_this_process(model: Model) -> None:
    pool, lines = same_run(model, None, 1, audit=2)
    assert not lines and len(pool.log) == STEPS * 5


def test_an_audit_never_asks_the_same_worker_twice(model: Model) -> None:
    pool, _ = same_run(model, None, 3, audit=1)
    asked = [(step, number) for _, step, number in pool.log]
    assert len(asked) == 2 * len(set(asked)) == 2 * STEPS * 5
    assert len(set(pool.log)) == len(pool.log)


def test_validation_has_the_same_bits(model: Model) -> None:
    data = random_rows(model, [4, 9, 6, 11, 30, 28, 25, 31], seed=2)
    here, there = (made(model, **OPTIONS, validation=data) for _ in range(2))
    pool = FakePool(there, 2)
    spread(there, pool, 1)
    assert here.validation_loss() == there.validation_loss()
    assert set(pool.kinds) == {("w0", "loss"), ("w1", "loss")}
    assert here.step().loss == there.step().loss
    assert pool.n_params == 1  # the step after an evaluation has its parameters


def test_too_few_micro_batches_are_reported(model: Model) -> None:
    _, lines = same_run(model, None, 6)
    assert lines == [
        "warning: each step has 5 micro-batches in 5 blocks of 1, but there are 6 workers; "
        "pass --grad-acc 6 or more to give every worker a block"
    ]
    _, lines = same_run(model, None, 2, options={"block": 8})
    assert "pass --block 2 to give every worker a block" in lines[0]


def test_the_time_of_workers(model: Model) -> None:
    t = made(model, **OPTIONS)
    pool = FakePool(t, 2)
    spread(t, pool, 1)
    t.step()
    assert isinstance(t.steps, Spread)
    rows = t.steps.report()
    assert [row.worker for row in rows] == ["w0", "w1"]
    assert sum(row.blocks for row in rows) == 5
    assert all(row.tokens_per_s > 0 and 0 < row.share <= 1 for row in rows)
    assert not t.steps.report()  # that of the next step
    t.step()
    assert sum(row.blocks for row in t.steps.report()) == 5
    assert sum(row.blocks for row in t.steps.summary()) == 10


def test_addresses() -> None:
    assert parse_address("local:3") == Address("local:3", 3)
    assert parse_address("auto").local == 0 == parse_address("10.0.0.1:6379").local
    for text in ("local", "local:0", "host", "host:0", "host:99999", "ray://host:1"):
        with pytest.raises(UsageError, match="--ray"):
            parse_address(text)


def test_workers_on_this_machine_get_a_random_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    one: dict[str, str] = {}
    other: dict[str, str] = {}
    assert protect_local(one) == protect_local(other) == ""
    assert one["RAY_AUTH_MODE"] == "token"
    assert len(one["RAY_AUTH_TOKEN"]) == 64
    assert one["RAY_AUTH_TOKEN"] != other["RAY_AUTH_TOKEN"]
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"}
    assert protect_local(own) == ""
    assert own["RAY_AUTH_TOKEN"] == "mine"
    # Ray reads the variables when it is imported
    monkeypatch.setitem(sys.modules, "ray", object())
    late: dict[str, str] = {}
    assert "RAY_AUTH_MODE=token" in protect_local(late)
    assert not late


def test_a_cluster_needs_a_token(tmp_path: Path) -> None:
    there = parse_address("10.0.0.1:6379")
    check_token(parse_address("local:2"), {})
    check_token(there, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"})
    nowhere = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    for env in ({}, {"RAY_AUTH_TOKEN": "secret"}, {"RAY_AUTH_MODE": "token"}):
        with pytest.raises(UsageError, match="run code"):
            check_token(there, nowhere | env)


def test_who_can_join() -> None:
    mine = facts()
    assert misfit(mine, mine, mixed_cpu=False) == ""
    assert "numba is 0.1 on the worker" in misfit(mine, mine | {"numba": "0.1"}, mixed_cpu=True)
    other = mine | {"cpu": "z80"}
    assert "--allow-mixed-cpu" in misfit(mine, other, mixed_cpu=False)
    assert misfit(mine, other, mixed_cpu=True) == ""
    assert other_cpu(mine, other) and not other_cpu(mine, mine)


def test_a_worker_opens_the_same_model(model: Model, tmp_path: Path) -> None:
    plan = plan_of(made(model), {}, threads=1)
    with pytest.raises(NbllamaError, match="constants that differ"):
        Worker(replace(plan, hp=plan.hp + " "), plan.path)
    other = toy_model(tmp_path, seed=3)
    with pytest.raises(NbllamaError, match="is a different base model"):
        Worker(plan, other.gguf.path)


def test_another_cpu_is_compared_once(model: Model) -> None:
    t = made(model, **OPTIONS)
    pool = FakePool(t, 3, lambda pool, w, b: "wrong" if w == "w1" else "")
    pool.others = {"w1", "w2"}
    lines = spread(t, pool, 1)
    train(t, 2)
    assert len(lines) == 2 and not pool.others
    (wrong,) = [line for line in lines if line.startswith("worker w1 has a different CPU")]
    (right,) = [line for line in lines if line.startswith("worker w2 has a different CPU")]
    assert "the results are bit-identical" in right
    found = re.search(r"difference is 0.0e\+00 in the loss and (\S+) in the gradient", wrong)
    assert found is not None and 1e-4 < float(found[1]) < 1e3


def test_options_that_exclude_each_other(folder: Path, run: Run) -> None:
    mixed = ["--ray", "local:2", "--audit", "3", "--allow-mixed-cpu"]
    refused(run(words(folder, *mixed)), 2, "--audit and --allow-mixed-cpu")
    refused(run(words(folder, "--ray", "local:2", "--dump", "1:x")), 2, "--dump and --ray")


def test_a_copy_of_the_model_is_checked(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5
    sha256 = hashlib.sha256(content).hexdigest()
    copy = Copy(str(tmp_path / "new"), sha256, len(content))
    copy.append(content[:700])
    copy.append(content[700:])
    assert Path(copy.finish()).read_bytes() == content
    bad = Copy(str(tmp_path / "bad"), sha256, len(content))
    bad.append(content[1:] + b"x")
    with pytest.raises(NbllamaError, match="damaged"):
        bad.finish()
    assert not list((tmp_path / "bad").iterdir())


def test_the_model_is_found_by_its_sha256(model: Model, tmp_path: Path) -> None:
    plan = plan_of(made(model), {}, threads=1, alone=False)
    assert find_model(plan, "") == plan.path
    moved = tmp_path / "deep" / "renamed.gguf"
    moved.parent.mkdir()
    shutil.copy(plan.path, moved)
    elsewhere = replace(plan, path=str(tmp_path / "missing.gguf"))
    assert find_model(elsewhere, str(tmp_path)) == str(moved)
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    assert find_model(elsewhere, str(tmp_path)) == ""


def test_ray_is_imported_only_if_asked_for(folder: Path, run: Run) -> None:
    assert run(words(folder, "--block", "1")).code == 0
    assert "ray" not in sys.modules
    done = run(words(folder, "--ray", "10.0.0.1:6379"))
    refused(done, 2, "RAY_AUTH_MODE=token")
    assert "ray" not in sys.modules


@pytest.mark.slow
def test_a_run_with_ray(folder: Path) -> None:
    pytest.importorskip("ray")
    bits = []
    for name, more in {"none": [], "ray": ["--ray", "local:2"]}.items():
        out = ["--checkpoint-out", str(folder / f"{name}-ITERATION.gguf")]
        done = run_child(words(folder, "--grad-acc", "4", "--block", "1", *out, *more), folder)
        assert done.code == 0, done
        bits.append(file_bits(folder / f"{name}-4.gguf"))
    assert bits[0] == bits[1]
