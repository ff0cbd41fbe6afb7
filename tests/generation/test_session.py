"""Greedy generation with a KV cache against the full forward pass without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.errors import CheckpointError, UsageError
from nbllama.generation.session import PROMPT_STEP, Session, stream
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.ops.linear.matvec import MOST_TOKENS
from tests.train.toy_runs import toy_adapter, toy_model

PROMPT = [1, 45, 7, 300, 12, 12, 99]
# One token at a time has other sums than many at once; logits here are up to about 4.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return endless(toy_model(tmp_path_factory.mktemp("model"), n_layer=3))


def endless(model: Model, *eog_ids: int) -> Model:
    """A model for which only `eog_ids` end a text; random models generate anything."""
    model.__dict__["tokenizer"] = SimpleNamespace(eog_ids=frozenset(eog_ids))
    return model


def by_hand(model: Model, prompt: list[int], n: int, adapter: Adapter | None) -> list[int]:
    """Greedy continuation by the whole forward pass at every step."""
    tokens = list(prompt)
    for _ in range(n):
        top = nbllama.logits(model, tokens, adapter)[-1]
        best = np.sort(top)[-2:]
        assert best[1] - best[0] > 10 * TOLERANCE, "a tie proves nothing: take another prompt"
        tokens.append(int(top.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_generate_equals_the_full_forward_pass(model: Model, with_adapter: bool) -> None:
    adapter = toy_adapter(model) if with_adapter else None
    assert nbllama.generate(model, PROMPT, 24, adapter) == by_hand(model, PROMPT, 24, adapter)


def test_an_adapter_changes_what_is_said(model: Model) -> None:
    assert nbllama.generate(model, PROMPT, 24) != nbllama.generate(
        model, PROMPT, 24, toy_adapter(model)
    )


@pytest.mark.parametrize(
    "options", [dict(tied=True), dict(rope_scaling=("yarn", 4.0, 16)), dict(biases=True)], ids=str
)
def test_other_models(tmp_path: Path, options: dict[str, Any]) -> None:
    model = endless(toy_model(tmp_path, **options))
    assert nbllama.generate(model, PROMPT, 12) == by_hand(model, PROMPT, 12, None)


@pytest.mark.parametrize("cut", [1, 2, MOST_TOKENS, MOST_TOKENS + 1, 20, 40])
def test_however_the_tokens_come_the_logits_are_those_of_the_whole(model: Model, cut: int) -> None:
    tokens = np.random.default_rng(2).integers(0, 320, 40).tolist()
    wanted = nbllama.logits(model, tokens)
    session = Session(model, None, 40)
    kept = [session.feed(tokens[start : start + cut]) for start in range(0, 40, cut)]
    # checked only now: the returned arrays must not be overwritten by later calls
    for found, at in zip(kept, range(cut, 40 + cut, cut), strict=True):
        np.testing.assert_allclose(found, wanted[min(at, 40) - 1], rtol=0, atol=TOLERANCE)


def test_a_prompt_longer_than_a_step(model: Model) -> None:
    tokens = np.random.default_rng(4).integers(0, 320, PROMPT_STEP + 100).tolist()
    session = Session(model, None, len(tokens))
    wanted = nbllama.logits(model, tokens)[-1]
    np.testing.assert_allclose(session.feed(tokens), wanted, rtol=0, atol=TOLERANCE)


def test_many_small_steps_of_a_prompt(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nbllama.generate(model, PROMPT, 8)
    for step in (1, 3, len(PROMPT), len(PROMPT) - 1):
        monkeypatch.setattr("nbllama.generation.session.PROMPT_STEP", step)
        assert nbllama.generate(model, PROMPT, 8) == whole


def test_threads_change_no_bit(model: Model) -> None:
    import numba

    before, found = numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        session = Session(model, toy_adapter(model), 20)
        found.append([session.feed(PROMPT).tobytes(), session.feed([3]).tobytes()])
    numba.set_num_threads(before)
    assert found[0] == found[1]


def test_generation_ends_before_an_end_token(tmp_path: Path) -> None:
    model = endless(toy_model(tmp_path))
    said = nbllama.generate(model, PROMPT, 10)
    assert len(said) == 10
    first = said.index(said[4])
    assert nbllama.generate(endless(model, said[4]), PROMPT, 10) == said[:first]
    assert toy_model(tmp_path).tokenizer.eog_ids == {2}  # what `stream` looks at


def test_lengths(model: Model) -> None:
    assert nbllama.generate(model, PROMPT, 0) == []
    assert nbllama.generate(model, [5], 3) == by_hand(model, [5], 3, None)
    tokens = stream(model, PROMPT, 5)
    assert [next(tokens), next(tokens)] == nbllama.generate(model, PROMPT, 2)


def test_a_full_context_is_said(model: Model) -> None:
    session = Session(model, None, 8)
    session.feed(PROMPT)
    session.feed([3])
    with pytest.raises(UsageError, match="context of 8 tokens is full"):
        session.feed([3])
    with pytest.raises(UsageError, match="context of 4 tokens is full"):
        Session(model, None, 4).feed(PROMPT)


@pytest.mark.parametrize("token", [-1, 320, 2**31, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(model: Model, token: int) -> None:
    session = Session(model, None, 20)
    session.feed(PROMPT)
    with pytest.raises(UsageError, match="vocabulary of 320"):
        session.feed([5, token])
    # and nothing has happened
    np.testing.assert_array_equal(session.feed([6]), _after(model, [*PROMPT], [6]))


def _after(model: Model, *parts: list[int]) -> np.ndarray:
    session = Session(model, None, 20)
    for part in parts:
        logits = session.feed(part)
    return logits


def test_no_prompt_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        nbllama.generate(model, [], 4)


def test_an_adapter_of_another_model_is_refused(model: Model, tmp_path: Path) -> None:
    other = toy_adapter(toy_model(tmp_path, n_embd=48, n_head=4, n_head_kv=2))
    with pytest.raises(
        CheckpointError, match=r"a different model: the pair for token_embd\.weight"
    ):
        nbllama.generate(model, PROMPT, 4, other)


def test_tokens_can_be_taken_back(model: Model) -> None:
    session = Session(model, toy_adapter(model), 20)
    wanted = session.feed(PROMPT)
    session.feed([3, 4])
    session.truncate(4)
    np.testing.assert_allclose(session.feed(PROMPT[4:]), wanted, rtol=0, atol=TOLERANCE)
    session.truncate(0)
    np.testing.assert_array_equal(session.feed(PROMPT), wanted)
    with pytest.raises(ValueError, match="8 to 7 of 7"):
        session.truncate(8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(rope_scaling=("yarn", 4.0, 16)),
        dict(rope_scaling=("linear", 2.0)),
        dict(rope_factors=True),
    ],
    ids=str,
)
def test_a_shift_is_as_if_the_tokens_had_never_been(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """With one block, keys and values do not depend on the tokens before them."""
    model = endless(toy_model(tmp_path, n_layer=1, **options))
    tokens = np.random.default_rng(2).integers(0, 320, 60).tolist()
    session = Session(model, None, 60)
    session.feed(tokens[:50])
    session.shift(3, 20)
    assert session.cache.length == 30
    found = session.feed(tokens[50:])
    wanted = nbllama.logits(model, tokens[:3] + tokens[23:])[-1]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    assert np.abs(nbllama.logits(model, tokens)[-1] - wanted).max() > 100 * TOLERANCE
    with pytest.raises(ValueError, match="cannot be removed"):
        session.shift(30, 20)


def test_a_check_that_raises_leaves_the_session_as_it_was(model: Model) -> None:
    class Stop(Exception):
        pass

    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2 * model.hp.n_layer - 1:
            raise Stop

    session = Session(model, None, 20, step=3, check=check)
    with pytest.raises(Stop):
        session.feed(PROMPT)
    assert session.cache.length == 3
    wanted = Session(model, None, 20, step=3).feed(PROMPT)
    np.testing.assert_array_equal(session.feed(PROMPT[3:]), wanted)


@pytest.mark.parametrize(
    "types",
    [
        "Q4_0",
        pytest.param("Q4_K", marks=pytest.mark.slow),
        pytest.param({"*": "Q4_K", "attn_v": "Q6_K"}, marks=pytest.mark.slow, id="mixed"),
    ],
)
def test_integer_products_stay_near_the_exact_ones(tmp_path: Path, types: Any) -> None:
    size = dict(n_embd=256, n_head=4, n_head_kv=2, n_ff=512)
    model = toy_model(tmp_path, types=types, **size)
    exact, fast = Session(model, None, 16, exact=True), Session(model, None, 16)
    for session in (exact, fast):
        session.feed(PROMPT)
    for token in (5, 44, 3):
        a, b = exact.feed([token]), fast.feed([token])
        assert 1e-4 < np.abs(a - b).max() / np.abs(a).max() < 0.05
        assert np.corrcoef(a, b)[0, 1] > 0.999
    many = Session(model, None, 16, exact=True)
    np.testing.assert_allclose(many.feed([*PROMPT, 5, 44, 3]), a, atol=1e-3)


def test_integer_products_leave_floats_and_adapters_alone(model: Model) -> None:
    adapter = toy_adapter(model)
    exact, fast = Session(model, adapter, 16, exact=True), Session(model, adapter, 16)
    for session in (exact, fast):
        session.feed(PROMPT)
    np.testing.assert_array_equal(exact.feed([5]), fast.feed([5]))
