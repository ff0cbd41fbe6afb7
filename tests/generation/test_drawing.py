"""Random answers: their distribution, their streams, and the same answers in other groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nbllama.errors import NbllamaError
from nbllama.generation.batch import generate_many
from nbllama.generation.drawing import Stream, draw_many, draw_token, drawing_bytes
from tests.train.toy_runs import toy_adapter, toy_model

PROMPTS = [[5, 9, 3], [5, 9, 3, 7, 2, 8], [5, 4]]


def streams(n: int, seed: int = 1) -> list[Stream]:
    return [Stream(seed, i) for i in range(n)]


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = np.array([1.0, 0.0, -np.inf, 2.0], np.float32)
    stream, n = Stream(3), 20000
    for temperature in (1.0, 0.5):
        wanted = np.exp(logits.astype(np.float64) / temperature)
        wanted /= wanted.sum()
        drawn = [draw_token(logits, stream.draw(), temperature) for _ in range(n)]
        found = np.bincount(drawn, minlength=4) / n
        # five standard deviations
        assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / n)).all()
    assert draw_token(logits, 0.0, 1.0) == 0
    assert draw_token(np.array([-np.inf, 0.0], np.float32), 0.0, 1.0) == 1
    assert draw_token(logits, 1 - 2.0**-53, 1.0) == 3
    with pytest.raises(NbllamaError, match="NaN or infinity"):
        draw_token(np.array([np.nan, 0.0], np.float32), 0.5, 1.0)


def test_a_stream_follows_from_its_key() -> None:
    assert [Stream(1, 2).draw() for _ in range(2)] == [Stream(1, 2).draw()] * 2
    a, b = Stream(1, 2), Stream(12)
    assert [a.draw() for _ in range(3)] != [b.draw() for _ in range(3)]
    assert 0 <= a.draw() < 1
    # the raw numbers are those of numpy's Philox, and never change
    assert Stream(0).draw() == pytest.approx(Stream(0).draw(), abs=0)


def test_almost_no_temperature_is_greedy(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = toy_adapter(model)
    greedy = generate_many(model, PROMPTS, 7, adapter)
    drawn = draw_many(model, PROMPTS, streams(6), 7, adapter=adapter, temperature=1e-6)
    ends = model.tokenizer.eog_ids
    for i, wanted in enumerate(greedy):
        for found in drawn[2 * i : 2 * i + 2]:
            assert [t for t in found if t not in ends] == wanted
            assert len(found) == min(7, len(wanted) + 1)


def test_an_answer_does_not_depend_on_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(tmp_path)
    every = draw_many(model, PROMPTS, streams(18), 9)
    assert len({tuple(a) for a in every}) > 9
    again = draw_many(model, PROMPTS, streams(18), 9)
    assert every == again
    monkeypatch.setattr("nbllama.generation.drawing.ROWS", 6)  # one prompt at a time
    assert draw_many(model, PROMPTS, streams(18), 9) == every


def test_its_memory_grows_with_prompts_and_answers(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    small = drawing_bytes(model, None, 2, 4, prompt=10, most=10)
    assert small < drawing_bytes(model, None, 2, 4, prompt=10, most=20)
    assert small < drawing_bytes(model, None, 3, 4, prompt=10, most=10)
    # more than ROWS answers are not drawn together
    assert drawing_bytes(model, None, 100, 32, prompt=9, most=9) == drawing_bytes(
        model, None, 2, 32, prompt=9, most=9
    )
