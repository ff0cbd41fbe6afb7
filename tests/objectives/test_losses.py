"""Losses of preferences: known values, finite differences, and the same formulas in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nbllama.objectives.dpo import dpo
from nbllama.objectives.kto import kto_reference_point
from nbllama.objectives.orpo import orpo
from nbllama.objectives.sides import Sides, log_sigmoid, sigmoid
from nbllama.train.preference.loss import Numbers, loss_of
from tests.objectives.cases import NUMBERS, Z, answers, sides_of


def one_pair(chosen: float, rejected: float, n: tuple[int, int] = (1, 1)) -> Sides:
    values = (chosen, rejected, 0.0, 0.0, *map(float, n))
    return Sides(*(np.array([x]) for x in values))


def test_known_values() -> None:
    same = dpo(one_pair(-3.0, -3.0), beta=0.1)
    assert same.loss[0] == pytest.approx(math.log(2), abs=1e-15)
    assert same.d_chosen[0] == pytest.approx(-0.05) and same.d_rejected[0] == pytest.approx(0.05)
    # h = 2, beta 0.5: -log sigmoid(1)
    ahead = dpo(one_pair(-1.0, -3.0), beta=0.5)
    assert ahead.loss[0] == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-15)
    assert ahead.reward_chosen[0] - ahead.reward_rejected[0] == pytest.approx(1.0)
    # p = 1/2 a token on both sides: the odds are equal
    half = orpo(one_pair(2 * math.log(0.5), math.log(0.5), (2, 1)), beta=0.1)
    assert half.loss[0] == pytest.approx(0.1 * math.log(2), abs=1e-15)
    assert kto_reference_point(np.array([-1.0, -2.0]), np.array([-2.0, -2.0])) == 0.5
    assert kto_reference_point(np.array([-3.0]), np.array([-2.0])) == 0.0


def test_sigmoids_far_out() -> None:
    x = np.array([-800.0, -1.0, 0.0, 1.0, 800.0])
    assert np.allclose(sigmoid(x), [0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1])
    assert np.allclose(log_sigmoid(x), [-800, -math.log1p(math.e), -math.log(2), -0.3132616875, 0])


@pytest.mark.parametrize("name", NUMBERS)
def test_slopes_against_finite_differences(name: str) -> None:
    a, numbers = answers(), NUMBERS[name]
    found = loss_of(numbers, a, Z)
    for i in range(len(a.policy)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = a.policy.copy()
            moved[i] += step
            ends.append(float(loss_of(numbers, a._replace(policy=moved), Z).loss.sum()))
        slope = (ends[0] - ends[1]) / 2e-6
        assert found.slope[i] == pytest.approx(slope, rel=2e-6, abs=2e-8), i


def test_a_weight_is_a_factor_of_its_own_pair_alone() -> None:
    a = answers()
    plain = loss_of(NUMBERS["dpo, with sft"], a._replace(weight=np.ones(len(a.weight))))
    weighted = loss_of(NUMBERS["dpo, with sft"], a)
    assert np.allclose(weighted.loss, plain.loss * a.weight[::2], rtol=1e-14)
    assert np.allclose(weighted.slope, plain.slope * a.weight, rtol=1e-14)
    assert np.array_equal(weighted.reward, plain.reward)


@pytest.mark.parametrize("name", NUMBERS)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    """The papers' formulas as in torch trainers, with torch's gradients."""
    torch = pytest.importorskip("torch", reason="needs the extra peer")
    a, numbers = answers(), NUMBERS[name]
    policy = torch.tensor(a.policy, dtype=torch.float64, requires_grad=True)
    loss = _torch_loss(torch, numbers, policy, a)
    loss.sum().backward()
    found = loss_of(numbers, a, Z)
    assert np.allclose(found.loss, loss.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert np.allclose(found.slope, policy.grad.numpy(), rtol=1e-11, atol=1e-14)


def _torch_loss(torch: Any, x: Numbers, policy: Any, a: Any) -> Any:
    log_sig = torch.nn.functional.logsigmoid
    weight, n = torch.tensor(a.weight), torch.tensor(a.n)
    reference = torch.tensor(a.reference)
    if x.objective == "kto":
        ratio, good = policy - reference, torch.tensor(a.good)
        loss = torch.where(
            good, 1 - torch.sigmoid(x.beta * (ratio - Z)), 1 - torch.sigmoid(x.beta * (Z - ratio))
        )
        return weight * (loss + torch.where(good, -x.sft_weight * policy / n, 0.0 * policy))
    chosen, rejected, n_w, n_l = policy[0::2], policy[1::2], n[0::2], n[1::2]
    h = (chosen - rejected) - (reference[0::2] - reference[1::2])
    if x.objective == "dpo":
        e = x.label_smoothing
        loss = -log_sig(x.beta * h) * (1 - e) - log_sig(-x.beta * h) * e
    elif x.objective == "ipo":
        loss = (h - 1 / (2 * x.beta)) ** 2
    elif x.objective == "simpo":
        e, gap = x.label_smoothing, chosen / n_w - rejected / n_l - x.margin / x.beta
        loss = -log_sig(x.beta * gap) * (1 - e) - log_sig(-x.beta * gap) * e
    else:
        w, r = chosen / n_w, rejected / n_l
        odds = (w - r) - (torch.log1p(-torch.exp(w)) - torch.log1p(-torch.exp(r)))
        loss = -x.beta * log_sig(odds)
    return weight[0::2] * (loss - x.sft_weight * chosen / n_w)


def test_sides_are_those_of_the_pairs() -> None:
    a = answers(2)
    sides = sides_of(a)
    assert sides.chosen.tolist() == [a.policy[0], a.policy[2]]
    assert sides.n_rejected.tolist() == [a.n[1], a.n[3]]
