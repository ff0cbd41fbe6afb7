"""Growing texts: tokens that are read again or dropped, and the samplers' memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.generation.predictor import ContextFull, Predictor
from nbllama.generation.sampling.chain import Sampler
from nbllama.generation.sampling.params import SamplingParams
from nbllama.model.passes import Model
from tests.generation.test_session import TOLERANCE, endless
from tests.train.toy_runs import toy_model

PROMPT = [1, 45, 7, 300, 12, 12, 99]
GREEDY = SamplingParams(temp=0.0)
NEVER: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return endless(toy_model(tmp_path_factory.mktemp("model")))


def predictor(model: Model, n_ctx: int = 64, **options: Any) -> Predictor:
    params = options.pop("params", GREEDY)
    return Predictor(model, None, Sampler(params, 320, n_ctx), n_ctx, **options)


def drawn(p: Predictor, n: int) -> list[int]:
    return list(p.draw(n, NEVER))


@pytest.mark.parametrize("batch", [1, 2, 3, 512])
def test_greedy_is_generate(model: Model, batch: int) -> None:
    p = predictor(model, batch=batch)
    p.append(PROMPT)
    found = drawn(p, 10) + drawn(p, 6)
    assert found == nbllama.generate(model, PROMPT, 16)
    assert p.tokens == PROMPT + found
    assert p.n_read == len(p.tokens) - 1  # the last one was only drawn


def test_an_end_token_ends_a_draw_and_is_part_of_the_text(model: Model) -> None:
    said = nbllama.generate(model, PROMPT, 6)
    p = predictor(model)
    p.append(PROMPT)
    end = said.index(said[3]) + 1
    assert list(p.draw(-1, frozenset([said[3]]))) == said[:end]
    assert p.tokens == PROMPT + said[:end]


def test_only_what_changed_is_read_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    p = predictor(model)
    p.append(PROMPT)
    p.read()
    read: list[int] = []
    feed = p._session.feed

    def watched(tokens: Sequence[int]) -> np.ndarray:
        read.extend(tokens)
        return feed(tokens)

    monkeypatch.setattr(p._session, "feed", watched)
    for text, wanted in (
        ([*PROMPT, 5, 6], [5, 6]),
        ([*PROMPT, 5, 7, 8], [7, 8]),
        (PROMPT, [99]),  # there must be something to read for logits to come
        (PROMPT[:3], [7]),
        ([2, 3], [2, 3]),
    ):
        p.become(text)
        found = p.read()
        assert read == wanted
        read.clear()
        np.testing.assert_allclose(found, nbllama.logits(model, text)[-1], rtol=0, atol=TOLERANCE)


def test_a_full_context_ends_the_text(model: Model) -> None:
    p = predictor(model, n_ctx=16)
    p.append(PROMPT)
    found = []
    with pytest.raises(ContextFull, match="context of 16 tokens is full"):
        for token in p.draw(-1, NEVER):
            found.append(token)  # noqa: PERF402 (kept when the next one is refused)
    # 15 tokens are read, and one is drawn after the last of them
    assert len(PROMPT) + len(found) == 16
    assert found == nbllama.generate(model, PROMPT, len(found))


def test_a_shift_forgets_half_of_what_is_not_kept(model: Model) -> None:
    p = predictor(model, n_ctx=16, shift=True, keep=3)
    p.append(PROMPT)
    assert len(drawn(p, 40)) == 40
    assert p._session.cache.length < 16 < p.n_read == len(PROMPT) + 39
    p.become([*p.tokens[:-1], 7, 8])  # the end of the text can still be changed
    p.read()
    with pytest.raises(ContextFull, match="was dropped"):
        p.become([*PROMPT[:5], 9, 9])


def test_a_prompt_that_can_never_fit(model: Model) -> None:
    p = predictor(model, n_ctx=16, shift=True, keep=12, batch=8)
    p.append(list(range(3, 43)))
    with pytest.raises(ContextFull):
        p.read()


def test_penalties_look_at_the_prompt_and_at_what_was_drawn(model: Model) -> None:
    params = SamplingParams(temp=0.0, repeat_last_n=64, presence_penalty=1000.0)
    p = predictor(model, params=params)
    p.append(PROMPT)
    found = drawn(p, 30)
    assert len({*found, *PROMPT}) == 30 + len(set(PROMPT))
    p.reset_sampler()
    p.append([3])
    assert drawn(p, 1)[0] == nbllama.logits(model, p.tokens[:-1])[-1].argmax()


def test_a_stop_between_two_blocks_can_be_gone_on_from(model: Model) -> None:
    class Stop(Exception):
        pass

    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Stop

    p = predictor(model, batch=2, check=check)
    p.append(PROMPT)
    with pytest.raises(Stop):
        drawn(p, 5)
    assert p.n_read == 4
    assert drawn(p, 5) == nbllama.generate(model, PROMPT, 5)


def test_times_count_tokens(model: Model) -> None:
    p = predictor(model)
    assert p.times.line() == ""
    p.append(PROMPT)
    drawn(p, 5)
    line = p.times.line()
    assert line.startswith("read 7 tokens, ") and "; generated 4 tokens, " in line
