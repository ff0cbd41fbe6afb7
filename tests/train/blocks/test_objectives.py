"""Every objective and every kind of model in blocks: the same bits with and without workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.model.passes import Model
from nbllama.train.reward.drawn import Draw
from nbllama.train.run.prompts import Prompt, answers
from nbllama.train.trainer import Trainer
from nbllama.train.trunk import TrunkCache
from tests.objectives.cases import NUMBERS
from tests.train import test_preference_gradients, test_trunk, toy_rewards
from tests.train.blocks.fakes import FakePool, spread
from tests.train.toy_runs import random_rows, same_bits, state_of, toy_adapter, toy_model, trainer

STEPS = 2
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ipo", "orpo", "simpo, smoothed")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("toy"))


def same_run(make: Callable[[], Trainer], size: int = 1, n: int = 2, **more: Any) -> FakePool:
    """Run here and with `n` workers that begin to die; assert the same bits and measures."""
    here, there = make(), make()
    died: list[str] = []

    def fault(pool: FakePool, worker: str, unit: Any) -> str:
        if unit.step == 1 and unit.kind not in died:  # one worker dies of each kind of work
            died.append(unit.kind)
            pool.joining.append("one more")
            return "die"
        return ""

    pool = FakePool(there, n, fault, **more)
    lines = spread(there, pool, size)
    for _ in range(STEPS):
        assert here.step().loss == there.step().loss
        ours, theirs = dict(here.objective.measures()), dict(there.objective.measures())
        for one in (ours, theirs):
            one.pop("answers_per_s", None)
        assert ours == theirs
        if here.bound.load is not None:
            assert here.bound.load.sum() > 0
            assert (here.bound.load == there.bound.load).all()
    a, b = state_of(here), state_of(there)
    assert same_bits(a.arrays, b.arrays) and a.counters == b.counters
    assert sum("killed by the test" in line for line in lines) == len(died) > 0
    return pool


@pytest.mark.parametrize("name", ["dpo, with sft", "kto", *SLOW])
@pytest.mark.parametrize("shares", [False, True])
def test_preferences(model: Model, name: str, shares: bool) -> None:
    def make() -> Trainer:
        options = {"batch": 1, "grad_acc": 3, "block": 1, "share_prompts": shares}
        return test_preference_gradients.made(model, NUMBERS[name], **options)[0]

    pool = same_run(make)
    assert {worker for worker, _, _ in pool.log} == {"w0", "w1"}


def test_validation_of_preferences(model: Model) -> None:
    found = []
    for n in (0, 2):
        data = test_preference_gradients.preferences(model)
        options = {"batch": 1, "grad_acc": 3, "block": 1, "validation": data}
        t, _ = test_preference_gradients.made(model, NUMBERS["dpo, with sft"], **options)
        if n:
            spread(t, FakePool(t, n), 1)
        data.reference = t.dataset.reference  # type: ignore[attr-defined]
        found.append((t.validation_loss(), t.objective.measures()))
    assert found[0] == found[1]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 2])
def test_rewards(model: Model, beta: float, size: int) -> None:
    def make() -> Trainer:
        return toy_rewards.made(model, beta=beta, batch=1, grad_acc=3, block=size)

    pool = same_run(make, size)
    kinds = {kind for _, kind in pool.kinds}
    assert kinds == {"Draw", "gradient"} | ({"UnderReference"} if beta else set())
    for kind in kinds:
        assert len({worker for worker, own in pool.kinds if own == kind}) > 1
    assert pool.n_params == STEPS  # once per step, not once per kind of work


def test_rewards_with_a_reference_of_another_rank(model: Model) -> None:
    reference = toy_adapter(model, {"wq": 3, "w2": 2}, seed=9)

    def make() -> Trainer:
        return toy_rewards.made(model, beta=0.3, reference=reference, batch=1, grad_acc=3, block=1)

    same_run(make)


def test_answers_without_any_gradient(model: Model) -> None:
    """If all rewards are equal, there is no micro-batch, and the gradient is 0."""

    class Same(toy_rewards.Marks):
        def score(self, prompt: Any, answer: str, record: Any, check: Any = None) -> float:
            return 0.5

    for n in (0, 2):
        t = toy_rewards.made(model, beta=0.0, scorer=Same(), batch=1, grad_acc=3, block=1)
        for g in t.gradients.values():
            g.fill(1)
        if n:
            spread(t, FakePool(t, n), 1)
        assert t.step().loss == 0
        assert all(not g.any() for g in t.gradients.values())


def test_draws_do_not_contain_the_reward_function(model: Model) -> None:
    t = toy_rewards.made(model, batch=1, grad_acc=3)
    assert t.objective.copied().__dict__["_scorer"] is None
    task = Draw([[3, 4]], [(7, 0, 0, 0)], 4, 1.0)
    assert task.n_tokens == 6
    assert task.run(t, None) == task.run(t, None)


@pytest.mark.parametrize("name", ["qwen3moe, 30B-A3B and 235B-A22B"])
def test_experts(tmp_path: Path, name: str) -> None:
    MODELS[name].make(tmp_path / "m.gguf")
    experts = nbllama.load_model(tmp_path / "m.gguf")
    rows = random_rows(experts, [5, 9, 3, 12, 7, 8])

    def make() -> Trainer:
        adapter = random_adapter(experts, False)
        return trainer(experts, adapter, rows, batch=1, grad_acc=4, block=2)

    same_run(make, 2)


def test_frozen_blocks_are_stored_by_each_worker(tmp_path: Path) -> None:
    model = toy_model(tmp_path, n_layer=3)
    options = {"grad_acc": 3, "block": 1}
    caches: list[TrunkCache] = []

    def make() -> Trainer:
        caches.append(test_trunk.open_cache(tmp_path / f"{len(caches)}", model, []))
        return test_trunk.make(model, caches[-1], **options)

    pool = same_run(make, trunk=(test_trunk.KEY, 2))
    stored = [w.trunk for w in pool.alive.values() if isinstance(w.trunk, TrunkCache)]
    assert len(stored) == len(pool.alive) and any(cache.n_samples for cache in stored)
    plain = test_trunk.make(model, None, **options)
    for _ in range(STEPS):
        plain.step()
    first = test_trunk.make(model, None, **options)
    spread(first, FakePool(first, 2, trunk=(test_trunk.KEY, 2)), 1)
    for _ in range(STEPS):
        first.step()
    assert same_bits(state_of(plain).arrays, state_of(first).arrays)


def test_sampled_answers(model: Model) -> None:
    prompts = [Prompt(f"prompt {i}", [3 + i, 5, 7]) for i in range(4)]
    found = []
    for n in (0, 3):
        t = trainer(model, toy_adapter(model), random_rows(model, [5, 6]))
        if n:
            pool = FakePool(t, n)
            spread(t, pool, 1)
        found.append(answers(prompts, t, most_tokens=6, check=lambda: None))
    assert found[0] == found[1]
    assert [one["prompt"] for one in found[0]] == [p.text for p in prompts]
    assert len({worker for worker, kind in pool.kinds if kind == "GreedyAnswer"}) == 3
