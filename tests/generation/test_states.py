"""Models whose blocks have states: text in steps, several texts at once, a text that changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from nbllama.generation.batch import generate_many
from nbllama.generation.memory import session_memory
from nbllama.generation.model import Model
from nbllama.generation.session import Session, generate
from nbllama.generation.states import States
from nbllama.ops.short_conv import leave_state

KINDS = ("lfm2, 350M to 2.6B", "qwen35, 4B to 27B (heads share keys)")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("states") / "m.gguf"
    MODELS[request.param].make(path)
    return nbllama.load_model(path)


TOKENS = np.random.default_rng(1).integers(3, 288, 60).tolist()


def test_steps_give_the_same_bits(model: Model) -> None:
    """A state after 41 tokens equals the state after 6, 5, 22 and 8 more."""
    whole = Session(model, None, 64, exact=True).feed(TOKENS[:41])
    np.testing.assert_array_equal(in_steps(model, (6, 5, 22, 8)), whole)


def test_short_steps_give_the_same_but_for_rounding(model: Model) -> None:
    """Steps of fewer than `FEWEST_ROWS` tokens, whose products are added up in another order.

    That is so in models with attention alone too, and in the same places: linear layers and
    attention have a form of their own for few rows. The states themselves add no difference.
    """
    whole = Session(model, None, 64, exact=True).feed(TOKENS[:41])
    for steps in ((1, 2, 30, 8), (20, 1, 1, 18, 1)):  # a single token goes by its program
        np.testing.assert_allclose(in_steps(model, steps), whole, rtol=0, atol=2e-5)


def in_steps(model: Model, steps: tuple[int, ...]) -> np.ndarray:
    """Logits of the last token of a text that is read in these steps."""
    session, start = Session(model, None, 64, exact=True), 0
    for n in steps:
        logits = session.feed(TOKENS[start : start + n])
        start += n
    return logits


def test_a_token_does_not_depend_on_its_batch(model: Model) -> None:
    """Alone, and with other sequences before and after it."""
    alone = nbllama.logits(model, TOKENS[:20])
    longer = nbllama.logits(model, TOKENS)
    np.testing.assert_array_equal(longer[:20], alone)


def test_several_texts_at_once_are_each_alone(model: Model) -> None:
    """With a common start, of different lengths: states are copied, gathered and put back."""
    prompts = [TOKENS[:9] + TOKENS[20 : 20 + n] for n in (1, 4, 7)]
    together = generate_many(model, prompts, 6)
    assert together == [generate(model, prompt, 6, exact=True) for prompt in prompts]


def test_a_step_that_is_interrupted_changes_nothing(model: Model) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt

    session = Session(model, None, 64, check=check)
    with pytest.raises(KeyboardInterrupt):
        session.feed(TOKENS[:9])
        session.feed(TOKENS[9:20])
    got = session.feed(TOKENS[session.cache.length : 20])
    np.testing.assert_array_equal(got, Session(model, None, 64).feed(TOKENS[:20]))


def test_a_text_that_changes_is_read_again(model: Model) -> None:
    """A state cannot return to an earlier token; a text that is only longer continues it."""
    session = Session(model, None, 64)
    session.feed(TOKENS[:20])
    session.truncate(20)
    assert session.cache.length == 20
    session.truncate(12)
    assert session.cache.length == 0
    got = session.feed(TOKENS[:12])
    np.testing.assert_array_equal(got, Session(model, None, 64).feed(TOKENS[:12]))
    session.feed(TOKENS[12:13])
    session.truncate(0)
    again = [session.feed([token]) for token in TOKENS[:4]]
    fresh = Session(model, None, 64)
    np.testing.assert_array_equal(again, [fresh.feed([token]) for token in TOKENS[:4]])


def test_memory_of_the_states_is_told(model: Model) -> None:
    session = Session(model, None, 64)
    told = session_memory(model, None, 64, step=64, threads=1)
    states = session.cache.states
    assert states is not None and states.nbytes > 0
    assert told.cache == session.cache.nbytes + states.nbytes  # old and new ones during a step


def test_states_are_kept_by_commit_alone(model: Model) -> None:
    states = States(model.hp, 3)
    layer = next(i for i in range(model.hp.n_layer) if model.hp.mixer_at(i) != "attention")
    states.begin([2, 0])
    carried = states.exchange(layer)
    for name, after in carried.after.items():
        assert not carried.before[name].any()
        after[0], after[1] = 2.0, 3.0
    states.begin([0, 2])
    assert not any(x.any() for x in states.exchange(layer).before.values())
    states.begin([2, 0])
    for after in states.exchange(layer).after.values():
        after[0], after[1] = 2.0, 3.0
    states.commit()
    states.begin([0, 1, 2])
    for x in states.exchange(layer).before.values():
        assert [float(row.flat[0]) for row in x] == [3.0, 0.0, 2.0]


def test_a_short_sequence_keeps_the_end_of_the_state_before_it() -> None:
    u = np.arange(8, dtype=np.float32).reshape(4, 2)
    before = np.full((2, 3, 2), -1, np.float32)
    after = np.empty_like(before)
    leave_state(u, np.array([0, 1, 4], np.int32), before, after)
    assert after[0].tolist() == [[-1, -1], [-1, -1], [0, 1]]
    assert after[1].tolist() == u[1:].tolist()
    leave_state(u, np.array([0, 1, 4], np.int32), None, after)
    assert after[0].tolist() == [[0, 0], [0, 0], [0, 1]]


def test_a_chat_of_a_model_with_states(model: Model, tmp_path: Path) -> None:
    """The model generates text like any other."""
    assert isinstance(model.generate("the hen", max_tokens=3), str)


def test_a_sequence_that_goes_on_without_a_state_is_refused(model: Model) -> None:
    from nbllama.data.batch import Batch
    from nbllama.model.bound import Bound

    rows = [(np.array(TOKENS[i : i + 4], np.int32), np.full(4, -1, np.int32)) for i in (0, 4)]
    batch = Batch.from_rows(rows)
    batch.positions[4:] += 4
    with pytest.raises(ValueError, match="requires a stored state"):
        model.forward(Bound(model, None), model.forward_activations(None, 8), batch)
