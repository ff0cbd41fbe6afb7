"""Cases that llama.cpp's samplers do not have: bans, NaN, the whole context as a window."""

from __future__ import annotations

import numpy as np
import pytest

from nbllama.errors import NbllamaError
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.sampling.random import Random

GREEDY = SamplingParams(temp=0.0)


def test_banned_tokens_are_never_chosen() -> None:
    x = np.arange(8, dtype=np.float32)
    for params in (GREEDY, SamplingParams(mirostat=1), SamplingParams(mirostat=2, temp=50.0)):
        sampler = Sampler(params, 8, 64, banned=[7, 6])
        drawn = {sampler.sample(x) for _ in range(200)}
        assert not drawn & {6, 7} and drawn
    assert Sampler(GREEDY, 8, 64, banned=[7, 6]).sample(x) == 5
    assert x[7] == 7  # the logits are the caller's


def test_a_window_of_the_whole_context() -> None:
    params = SamplingParams(temp=0.0, repeat_last_n=-1, presence_penalty=100.0)
    x = np.arange(8, dtype=np.float32)
    sampler = Sampler(params, 8, n_ctx=3)
    for wanted in (7, 6, 5, 4, 7, 6, 5, 4):  # four tokens in turn: three are remembered
        assert sampler.sample(x) == wanted
        sampler.accept(wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    x = np.zeros(8, np.float32)
    x[3] = bad
    with pytest.raises(NbllamaError, match="NaN or infinity"):
        Sampler(GREEDY, 8, 64).sample(x)
    with pytest.raises(ValueError, match=r"expected \(8,\)"):
        Sampler(GREEDY, 8, 64).sample(x[:5])


def test_frequencies_are_those_of_the_softmax() -> None:
    """20000 draws; the largest count is off by at most 5 of its standard deviations."""
    x = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    params = SamplingParams(seed=7, temp=1.0, top_k=0, top_p=1.0, min_p=0.0)
    sampler = Sampler(params, 4, 64)
    n = 20000
    counts = np.bincount([sampler.sample(x) for _ in range(n)], minlength=4)
    p = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum()
    assert (np.abs(counts - n * p) < 5 * np.sqrt(n * p * (1 - p))).all()


def test_uniform_numbers() -> None:
    random = Random(3)
    drawn = np.array([random.uniform() for _ in range(20000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.01
    assert Random(3).uniform() == drawn[0] != Random(4).uniform()
