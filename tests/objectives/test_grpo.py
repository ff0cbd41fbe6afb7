"""GRPO on fixed log-probabilities: known values, finite differences, and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nbllama.objectives.grpo import SMALL, advantages, grpo

BETAS = (0.0, 0.04, 0.7)


def tokens(n: int = 40, seed: int = 2) -> tuple[np.ndarray, ...]:
    """log pi, log old, log ref and advantages; on both sides of the clip."""
    rng = np.random.default_rng(seed)
    policy = -rng.gamma(1.0, 1.5, n)
    old = policy + rng.standard_normal(n) * 0.3
    reference = policy + rng.standard_normal(n)
    return policy, old, reference, rng.standard_normal(n)


def test_advantages_of_a_group() -> None:
    found = advantages(np.array([1.0, 0.0, 0.0, 1.0]))
    deviation = math.sqrt(4 * 0.25 / 3)
    assert np.allclose(found, np.array([0.5, -0.5, -0.5, 0.5]) / (deviation + SMALL), rtol=1e-15)
    assert not advantages(np.array([0.3, 0.3, 0.3])).any()
    assert not advantages(np.array([0.1 + 0.2] * 7)).any()
    assert advantages(np.array([2.0])).tolist() == [0.0]
    assert advantages(np.array([])).tolist() == []


def test_known_values() -> None:
    log2 = math.log(2)
    # q = 2 is clipped for a good answer, not for a bad one; q = 1/2 the other way round
    q, a = np.array([log2, log2, -log2, -log2, 0.0]), np.array([1.0, -1.0, 1.0, -1.0, 3.0])
    nothing = np.zeros(5)
    found = grpo(q, nothing, q, a, beta=0.0, clip=0.2)
    assert np.allclose(found.loss, [-1.2, 2.0, -0.5, 0.8, -3.0], rtol=1e-15)
    assert np.allclose(found.slope, [0.0, 2.0, -0.5, 0.0, -3.0], rtol=1e-15)
    # k at d = log 2: 2 - log 2 - 1, with the slope 1 - 2
    apart = grpo(nothing, nothing, nothing + log2, nothing, beta=0.5)
    assert np.allclose(apart.kl, 1 - log2, rtol=1e-15)
    assert np.allclose(apart.loss, 0.5 * (1 - log2)) and np.allclose(apart.slope, -0.5)
    same = grpo(nothing, nothing, nothing, a, beta=0.5)
    assert not same.kl.any() and np.allclose(same.slope, -a)


@pytest.mark.parametrize("beta", BETAS)
def test_slopes_against_finite_differences(beta: float) -> None:
    policy, old, reference, advantage = tokens()
    found = grpo(policy, old, reference, advantage, beta=beta)
    step = 1e-6
    ends = [grpo(policy + h, old, reference, advantage, beta=beta).loss for h in (step, -step)]
    edge = np.abs(np.abs(np.exp(policy - old) - 1) - 0.2) < 1e-4
    assert not edge.any()
    assert np.allclose((ends[0] - ends[1]) / (2 * step), found.slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_are_those_of_torch(beta: float) -> None:
    """The formulas of TRL's GRPOTrainer, loss type "dapo", with torch's gradients."""
    torch = pytest.importorskip("torch", reason="needs the extra peer")
    rng = np.random.default_rng(5)
    group, sizes = 5, rng.integers(1, 9, 15)
    rewards = rng.choice([0.0, 0.5, 1.0], 15)
    rewards[:group] = 0.5  # a group without a difference
    policy, old, reference, _ = tokens(int(sizes.sum()))

    of_groups = torch.tensor(rewards).view(-1, group)
    mean, deviation = of_groups.mean(dim=1), of_groups.std(dim=1)
    spread = (torch.tensor(rewards) - mean.repeat_interleave(group)) / (
        deviation.repeat_interleave(group) + 1e-4
    )
    theirs = torch.tensor(policy, requires_grad=True)
    ratio = torch.exp(theirs - torch.tensor(old))
    of_tokens = spread.repeat_interleave(torch.tensor(sizes))
    loss = -torch.min(ratio * of_tokens, torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * of_tokens)
    apart = torch.tensor(reference) - theirs
    kl = torch.exp(apart) - apart - 1
    if beta:
        loss = loss + beta * kl
    mean_loss = loss.sum() / len(policy)
    mean_loss.backward()

    ours = np.concatenate([advantages(part) for part in rewards.reshape(-1, group)])
    assert np.allclose(ours, spread.numpy(), rtol=1e-12, atol=1e-13)
    found = grpo(policy, old, reference, np.repeat(ours, sizes), beta=beta)
    assert float(found.loss.sum()) / len(policy) == pytest.approx(mean_loss.item(), rel=1e-12)
    assert theirs.grad is not None
    assert np.allclose(found.slope / len(policy), theirs.grad.numpy(), rtol=1e-11, atol=1e-14)
    assert np.allclose(found.kl, kl.detach().numpy(), rtol=1e-12, atol=1e-14)
