"""Many prompts together, compared with each of them alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama.errors import UsageError
from nbllama.generation.batch import generate_many
from nbllama.model.passes import Model
from tests.generation.test_session import endless
from tests.train.toy_runs import toy_adapter, toy_model

SYSTEM = [1, 45, 7, 300, 12]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return endless(toy_model(tmp_path_factory.mktemp("model"), n_layer=3))


def prompts(n: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [SYSTEM + rng.integers(0, 320, rng.integers(1, 30)).tolist() for _ in range(n)]


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_each_answer_is_that_of_its_prompt_alone(
    model: Model, with_adapter: bool, at_once: int
) -> None:
    adapter = toy_adapter(model) if with_adapter else None
    asked, told = prompts(7), []
    found = generate_many(
        model, asked, 12, adapter, at_once=at_once, tell=lambda i, ids: told.append((i, ids))
    )
    assert found == [nbllama.generate(model, p, 12, adapter) for p in asked]
    assert told == list(enumerate(found))
    assert len({tuple(a) for a in found}) > 3


def test_a_sequence_that_ends_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    model = endless(toy_model(tmp_path, n_layer=3))
    asked = prompts(7)
    free = generate_many(model, asked, 12)
    end = free[2][4]
    endless(model, end)
    wanted = [a[: a.index(end)] if end in a else a for a in free]
    assert generate_many(model, asked, 12) == wanted
    assert len(wanted[2]) <= 4 and max(map(len, wanted)) == 12


@pytest.mark.parametrize(
    "asked",
    [[[5], [5]], [[5, 6], [5, 6, 7]], [[5, 6], [7, 8]], [[3]]],
    ids=["all the same", "one inside the other", "nothing in common", "one"],
)
def test_what_prompts_may_have_in_common(model: Model, asked: list[list[int]]) -> None:
    assert generate_many(model, asked, 6) == [nbllama.generate(model, p, 6) for p in asked]


def test_nothing_asked_for(model: Model) -> None:
    assert generate_many(model, [], 5) == []
    assert generate_many(model, prompts(2), 0) == [[], []]


@pytest.mark.parametrize("bad", [[], [320], [-1]])
def test_bad_prompts_are_refused(model: Model, bad: list[int]) -> None:
    with pytest.raises(UsageError):
        generate_many(model, [[1, 2], bad], 4)
