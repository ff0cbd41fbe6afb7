"""Every sampler, and whole sequences of draws, against llama.cpp's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nbllama.generation.sampling import filters
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.sampling.filters import Candidates
from nbllama.generation.sampling.params import SamplingParams
from nbllama.generation.sampling.penalties import Penalties
from tests.oracle.sampler import sampler

SIZES = (1, 2, 50, 1500, 5000)  # llama.cpp sorts more than 1024 differently


def logits(n: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def same(found: Candidates, link: tuple[Any, ...], x: np.ndarray) -> None:
    with sampler(link) as theirs:
        ids, left, _ = theirs.apply(x)
    assert sorted(found.ids.tolist()) == sorted(ids)
    by_id = dict(zip(ids, left, strict=True))
    wanted = [by_id[i] for i in found.ids.tolist()]
    np.testing.assert_allclose(found.logits, wanted, rtol=2e-7, atol=0)
    if found.ordered:
        assert (np.diff(found.logits) <= 0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("filter", "values", "link"),
    [
        (filters.top_k, (-1, 0, 1, 2, 40, 200, 9999), lambda v: ("top_k", v)),
        (filters.top_p, (1e-9, 0.1, 0.5, 0.95, 0.999, 1.0), lambda v: ("top_p", v, 0)),
        (filters.min_p, (0.0, 1e-6, 0.05, 0.5, 1.0), lambda v: ("min_p", v, 0)),
        (filters.typical, (1e-9, 0.2, 0.5, 0.9, 1.0), lambda v: ("typical", v, 0)),
        (filters.temperature, (0.1, 0.8, 1.0, 2.5), lambda v: ("temp_ext", v, 0.0, 1.0)),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_filters(
    filter: Callable[..., Candidates], values: tuple[float, ...], link: Any, n: int
) -> None:
    for seed, spread in ((1, 0.5), (2, 3.0), (3, 8.0)):
        x = logits(n, seed, spread)
        for value in values:
            same(filter(Candidates(np.arange(n), x), value), link(value), x)


def test_temperature_0_is_the_most_likely() -> None:
    x = logits(50, 1)
    for temp in (0.0, -1.0):
        found = filters.temperature(Candidates(np.arange(50), x), temp)
        with sampler(("temp_ext", temp, 0.0, 1.0), ("dist", 1)) as theirs:
            assert found.ids.tolist() == [theirs.apply(x)[2]] == [x.argmax()]


@pytest.mark.parametrize("last_n", [0, 1, 5, 64])
def test_penalties(last_n: int) -> None:
    x = logits(20, 4)
    text = np.random.default_rng(4).integers(0, 20, 40).tolist()
    for values in ((1.1, 0.0, 0.0), (1.0, 0.3, 0.0), (1.0, 0.0, 0.7), (0.9, -0.2, 0.5), (1, 0, 0)):
        ours = Penalties(last_n, *values)
        with sampler(("penalties", 20, last_n, *values)) as theirs:
            for token in text:
                ours.accept(token)
                theirs.accept(token)
            wanted = theirs.apply(x)[1]
            np.testing.assert_allclose(
                ours.apply(Candidates(np.arange(20), x)).logits, wanted, rtol=3e-7
            )
            ours.reset()
            np.testing.assert_array_equal(ours.apply(Candidates(np.arange(20), x)).logits, x)


def links(p: SamplingParams, n_vocab: int) -> list[tuple[Any, ...]]:
    """The chain of llama.cpp's `common_sampler_init`."""
    if p.mirostat == 1:
        last: tuple[Any, ...] = ("mirostat", n_vocab, p.seed, p.mirostat_ent, p.mirostat_lr, 100)
        return [("temp", p.temp), last]
    if p.mirostat == 2:
        return [("temp", p.temp), ("mirostat_v2", p.seed, p.mirostat_ent, p.mirostat_lr)]
    rules = (p.repeat_penalty, p.frequency_penalty, p.presence_penalty)
    return [
        ("penalties", n_vocab, p.repeat_last_n, *rules),
        ("top_k", p.top_k),
        ("typical", p.typical, 0),
        ("top_p", p.top_p, 0),
        ("min_p", p.min_p, 0),
        ("temp_ext", p.temp, 0.0, 1.0),
        ("dist", p.seed),
    ]


DEFAULT = SamplingParams(seed=42)


@pytest.mark.parametrize("n_vocab", [2, 400, 3000])
@pytest.mark.parametrize(
    "params",
    [
        DEFAULT,
        replace(DEFAULT, seed=2**31 - 1, repeat_penalty=1.2, repeat_last_n=8),
        replace(DEFAULT, frequency_penalty=0.4, presence_penalty=0.2, temp=1.5),
        replace(DEFAULT, top_k=0, top_p=0.9, min_p=0.0),
        replace(DEFAULT, typical=0.7, top_k=100),
        replace(DEFAULT, top_k=0, top_p=1.0, min_p=0.0, temp=1.0),
        replace(DEFAULT, temp=0.0),
        replace(DEFAULT, top_k=1),
        replace(DEFAULT, mirostat=1),
        replace(DEFAULT, mirostat=1, mirostat_ent=2.0, mirostat_lr=0.5, temp=1.3),
        replace(DEFAULT, mirostat=2),
        replace(DEFAULT, mirostat=2, mirostat_ent=1.0, mirostat_lr=0.3, temp=0.7),
    ],
    ids=lambda p: " ".join(
        f"{k}={v}" for k, v in p.__dict__.items() if v != getattr(SamplingParams(), k)
    ),
)
def test_the_same_seed_draws_the_same_tokens(params: SamplingParams, n_vocab: int) -> None:
    """120 tokens, with a reset in between; the same random numbers as llama.cpp's."""
    if params.mirostat == 1:
        n_vocab = max(n_vocab, 400)  # with few tokens its estimate of k leaves the integers
    ours = Sampler(params, n_vocab, n_ctx=512)
    with sampler(*links(params, n_vocab)) as theirs:
        drawn, wanted = [], []
        for i in range(120):
            x = logits(n_vocab, i, 2.0)
            drawn.append(ours.sample(x))
            wanted.append(theirs.apply(x)[2])
            assert drawn == wanted
            ours.accept(drawn[-1])
            theirs.accept(drawn[-1])
            if i == 70:
                ours.reset()
                theirs.reset()
    assert len(set(drawn)) > 1
