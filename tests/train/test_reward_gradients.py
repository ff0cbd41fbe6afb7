"""Rewards through a whole model: gradients, bits, and answers without a reward."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbllama.errors import NbllamaError
from nbllama.lora.pairs import init_adapter
from nbllama.model.reference import ReferenceModel, parameters64
from nbllama.objectives.grpo import advantages, grpo
from nbllama.ops.cross_entropy import cross_entropy_ref
from nbllama.train.reward.drawn import DrawnBatch
from nbllama.train.trainer import Trainer
from tests.train.toy_rewards import Marks, made, prompts
from tests.train.toy_runs import same_bits, state_of, toy_model

STEP = 1e-5


def drawn_in(t: Trainer) -> list[DrawnBatch]:
    """A list that each step of a trainer fills with its micro-batches."""
    kept: list[Any] = []
    plain = t.objective.drawn

    def drawn(*arguments: Any) -> list[Any]:
        kept[:] = plain(*arguments)
        return list(kept)

    t.objective.drawn = drawn  # type: ignore[method-assign, assignment]
    return kept


def log_pi(model: ReferenceModel, batch: DrawnBatch, params: Any, scale: float) -> np.ndarray:
    """log pi of each trained token, by the plain-numpy model in float64."""
    rows = batch.targets >= 0
    z = model.logits(batch, params, scale)
    found: np.ndarray = -cross_entropy_ref(z[rows], batch.targets[rows])
    return found


@pytest.mark.parametrize("beta", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_gradients_against_finite_differences(tmp_path: Path, beta: float) -> None:
    model = toy_model(tmp_path, n_head=4, n_head_kv=2)
    t = made(model, beta=beta)
    kept = drawn_in(t)
    found = t.evaluate()
    (batch,) = kept
    plain, params = ReferenceModel(model), parameters64(t.adapter)
    old = log_pi(plain, batch, params, t.adapter.scale)
    bare = {k: np.zeros_like(p) for k, p in params.items()}
    reference = log_pi(plain, batch, bare, 1.0)
    if beta:
        assert np.allclose(batch.reference, reference, atol=2e-5)
    counts = np.add.reduceat(batch.targets >= 0, batch.seq_offsets[:-1], dtype=np.int64)
    advantage = np.repeat(batch.advantage, counts)

    def loss(values: dict[str, np.ndarray]) -> float:
        policy = log_pi(plain, batch, values, t.adapter.scale)
        return float(grpo(policy, old, reference, advantage, beta=beta).loss.sum()) / found.trained

    assert found.loss == pytest.approx(loss(params), rel=5e-5, abs=1e-6)
    rng = np.random.default_rng(3)
    for key, g in t.gradients.items():
        assert np.abs(g).max() > 0, key
        direction = rng.standard_normal(g.shape)
        direction /= np.linalg.norm(direction)
        ends = [loss({**params, key: params[key] + h * direction}) for h in (STEP, -STEP)]
        numeric = (ends[0] - ends[1]) / (2 * STEP)
        assert float((g * direction).sum()) == pytest.approx(
            numeric, abs=2e-4 * float(np.linalg.norm(g)) + 1e-7
        ), key


def test_the_batch_may_be_cut_into_micro_batches(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    whole, parts = made(model, batch=3), made(model, batch=1, grad_acc=3)
    assert whole.evaluate().loss == pytest.approx(parts.evaluate().loss, rel=1e-4, abs=1e-6)
    for key, g in whole.gradients.items():
        assert np.allclose(g, parts.gradients[key], rtol=1e-3, atol=1e-5), key
    ours, theirs = (dict(t.objective.measures()) for t in (whole, parts))
    for one in (ours, theirs):
        assert one.pop("answers_per_s") > 0
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_the_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    import numba

    model, found = toy_model(tmp_path), []
    before = numba.get_num_threads()
    for n in (1, 2):
        numba.set_num_threads(n)
        t = made(model, batch=2)
        for _ in range(3):
            t.step()
        found.append(state_of(t).arrays)
    numba.set_num_threads(before)
    assert same_bits(*found)


def test_answers_follow_from_seed_iteration_prompt_and_number(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    said = []
    for seed, iteration in ((7, 0), (7, 0), (8, 0), (7, 1)):
        marks = Marks()
        t = made(model, scorer=marks, seed=seed)
        t.iteration = iteration
        t.evaluate()
        said.append(sorted(marks.seen))
    assert said[0] == said[1]
    assert said[0] != said[2] and said[0] != said[3]
    assert len(set(said[0])) > 6  # of 12


def test_a_failed_reward_leaves_out_its_answer(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    lines: list[str] = []
    marks = Marks(fails=5)
    t = made(model, scorer=marks)
    t.objective.start(t, None, lines.append)
    kept = drawn_in(t)
    found = t.evaluate()
    (batch,) = kept
    assert batch.n_sequences == 12 - 2
    assert found.trained == batch.n_trained
    assert t.objective.measures()["reward_errors"] == 2
    (line,) = lines
    assert "2 of 12 rewards failed" in line and "ValueError: it failed" in line
    # the other answers of the group are compared without it
    rewards = [float(Marks().score("", text, {})) for text in marks.seen[4:8]]  # type: ignore[arg-type]
    alone = advantages(np.array(rewards)[[i for i in range(4) if (5 + i) % 5]])
    assert np.allclose(np.sort(batch.advantage[4:7]), np.sort(alone))


def test_a_run_whose_first_rewards_all_fail_ends(tmp_path: Path) -> None:
    t = made(toy_model(tmp_path), scorer=Marks(fails=1))
    with pytest.raises(NbllamaError, match=r"first 8 rewards of this run all failed.*it failed"):
        t.evaluate()


class Same(Marks):
    """Every answer has the same reward."""

    def score(self, prompt: Any, answer: str, record: Any, check: Any = None) -> float:
        return 0.5


def test_groups_without_a_difference(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    t = made(model, scorer=Same(), beta=0.0, decay=0.0)
    before = state_of(t).arrays
    r = t.step()
    assert (r.loss, r.skipped, r.tokens) == (0.0, False, 0)
    assert t.objective.measures()["same"] == 1.0
    assert same_bits(before, state_of(t).arrays)
    # the KL still has a gradient
    t = made(model, scorer=Same(), beta=0.2)
    assert t.evaluate().loss > 0
    assert t.objective.measures()["kl"] > 0


def test_the_reference_is_base_or_adapter(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    t = made(model)
    assert t.evaluate().loss != 0
    assert t.objective.measures()["kl"] > 1e-4
    # the adapter itself as the reference
    own = made(model, reference=deepcopy(t.adapter))
    own.evaluate()
    assert own.objective.measures()["kl"] == pytest.approx(0, abs=1e-9)
    # an adapter with other ranks, whose B is 0, is the base
    other = init_adapter(model.hp, {"wq": 2}, alpha=3.0, lora_r=2, seed=1, shapes=model.shapes)
    base, same = made(model), made(model, reference=other)
    assert base.evaluate().loss == pytest.approx(same.evaluate().loss, rel=1e-5)


def test_sizes_are_those_of_the_largest_step(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    data = prompts(model)
    batch = data.batch([0, 2])
    tokens, trained = data.lengths()
    assert batch.n_tokens == tokens[0] + tokens[2] == data.n_tokens(0) + data.n_tokens(2)
    assert batch.n_trained == trained[0] + trained[2] == 2 * 4 * 6
    t = made(model, data=data)
    assert t.laid_out([data.batch([0, 1, 2])])[0].n_tokens <= t.limits.computed
    assert t.objective.more_seconds(t) > 0 and t.objective.more_bytes(t) > 0


@pytest.mark.slow
def test_a_run_raises_the_reward(tmp_path: Path) -> None:
    class Long(Marks):
        def score(self, prompt: Any, answer: str, record: Any, check: Any = None) -> float:
            return float(len(answer))

    t = made(toy_model(tmp_path), scorer=Long(), beta=0.0, alpha=3e-2)
    rewards = []
    for _ in range(30):
        t.step()
        rewards.append(t.objective.measures()["reward"])
    assert np.mean(rewards[-5:]) > 1.5 * np.mean(rewards[:5])
