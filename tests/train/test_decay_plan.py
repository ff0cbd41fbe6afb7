"""The decay of a run, and runs that would learn nothing: as numbers, without training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nbllama.checkpoint.identity import Identity
from nbllama.checkpoint.state import TrainState
from nbllama.errors import UsageError
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import EVERY_SLOT
from nbllama.options.finetune.table import parse
from nbllama.train.run.decay import Decay, check_rates, plan, schedule
from nbllama.train.run.resume import completed
from nbllama.train.run.settings import Settings, resolve

NO_EXPERTS = [slot.name for slot in EVERY_SLOT if slot.kind == "experts"]


def run_of(
    words: str, state: TrainState | None = None, kind: str = "chat"
) -> tuple[Decay, Settings, list[str], list[float]]:
    """A run's decay, settings, lines and rates; `words` must have `--adam-iter`."""
    given = parse(["--model-base", "m", "--seed", "1", *words.split()])
    options, done = completed(given, state), state.iteration if state is not None else 0
    assert options.adam_iter is not None
    decay = plan(options, given.cos_decay_steps, state, data_kind=kind, n_iter=options.adam_iter)
    s = resolve(
        replace(options, cos_decay_steps=decay.end), kind, 1000, missing=NO_EXPERTS, cores=1,
        new_seed=1, done=done, begin=decay.begin,
    )  # fmt: skip
    rates = schedule(s, decay)

    def factor(i: int) -> float:
        return rates.factor(i - 1 if options.compat else i)

    lines = [*decay.notes, *s.notes, *check_rates(decay, s, done, factor)]
    return decay, s, lines, [factor(i) for i in range(done + 1, done + s.n_iter + 1)]


def after(words: str, n: int, state: TrainState | None = None, kind: str = "chat") -> TrainState:
    """The checkpoint of iteration `n` of the run."""
    decay, s, _, _ = run_of(words, state, kind)
    same = Identity(arch="llama", lora_r=4, lora_alpha=4.0, ranks={}, settings=s.saved())
    adapter = Adapter("llama", 4.0, 4, {})
    return TrainState(
        same, adapter, {}, {}, seed=1, n_samples=1000, iteration=n, decay_begin=decay.begin,
        decay_last=decay.stored_last,
    )  # fmt: skip


def fields(state: TrainState) -> tuple[int, int, Any]:
    return state.decay_begin, state.decay_last, state.identity.settings["cos_decay_steps"]


def test_a_finished_run_starts_a_new_decay() -> None:
    first = after("--adam-iter 20", 20)
    assert fields(first) == (0, 0, 20)
    decay, s, lines, rates = run_of("--adam-iter 40", first)
    (line,) = lines
    assert "a new decay without warm-up covers iterations 21 to 60" in line
    assert decay.new and (decay.begin, s.cos_decay_steps) == (20, 60)
    fresh = run_of("--adam-iter 40 --warmup 0")[3]
    assert rates == fresh and rates[0] > 0.99 and rates[-1] == 0
    assert "warm-up 0, cosine to 0 at iteration 60" in dict(s.pairs(decay.begin))["rate"]


def test_a_new_decay_is_continued_and_followed_by_a_third() -> None:
    first = after("--adam-iter 20", 20)
    second = after("--adam-iter 40", 33, first)
    assert fields(second) == (20, 0, 60)
    decay, _, lines, rates = run_of("--adam-iter 27", second)
    assert not decay.new and not lines
    assert rates == run_of("--adam-iter 40", first)[3][13:]
    second = after("--adam-iter 27", 60, second)
    assert fields(second) == (20, 0, 60)
    decay, _, lines, rates = run_of("--adam-iter 4", second)
    assert (decay.begin, decay.end, decay.last) == (60, 65, 64) and len(lines) == 1
    assert rates == run_of("--adam-iter 4 --warmup 0")[3] and min(rates) > 0


def test_an_interrupted_run_has_the_rates_of_a_whole_one() -> None:
    for n, words in ((20, ""), (20, "--lr-schedule linear"), (20, "--lr-schedule wsd"), (6, "")):
        whole = run_of(f"--adam-iter {n} {words}")[3]
        for done in range(1, n):
            state = after(f"--adam-iter {n} {words}", done)
            decay, _, lines, rates = run_of(f"--adam-iter {n - done} {words}", state)
            assert not decay.new and not lines and rates == whole[done:]


def test_a_decay_that_was_given_is_kept() -> None:
    """`--lr-decay-steps` is not the run's length: no new decay, in the middle or at the end."""
    words = "--adam-iter 20 --lr-decay-steps 8 --lr-decay-min 0.1"
    whole = run_of(words)[3]
    assert fields(after(words, 20)) == (0, 20, 8)
    for done in (5, 8, 12, 19):
        for again in ("", " --lr-decay-steps 8"):
            decay, _, _, rates = run_of(f"--adam-iter {20 - done}{again}", after(words, done))
            assert not decay.new and rates == whole[done:]
    assert run_of("--adam-iter 3", after(words, 20))[3] == pytest.approx([0.1] * 3)
    longer = after("--adam-iter 4 --lr-decay-steps 9 --warmup 1", 4)
    assert fields(longer) == (0, 4, 9)
    assert run_of("--adam-iter 5", longer)[3] == run_of("--adam-iter 9 --lr-decay-steps 9")[3][4:]


def test_the_same_end_again_is_no_wish() -> None:
    """The file of a run's options contains the chosen end."""
    first = after("--adam-iter 20", 20)
    for steps in (20, 60):
        decay = run_of(f"--adam-iter 40 --lr-decay-steps {steps}", first)[0]
        assert decay.new and decay.end == 60
    # such a run, stopped and continued with its own options
    second = after("--adam-iter 40 --lr-decay-steps 20", 30, first)
    decay, _, lines, _ = run_of("--adam-iter 30 --lr-decay-steps 20", second)
    assert (decay.begin, decay.end, decay.new) == (20, 60, False)
    assert "--lr-decay-steps 20 was the end of an earlier decay" in lines[0]
    # another end is another run, which is refused as such
    decay, s, _, _ = run_of("--adam-iter 40 --lr-decay-steps 99", first)
    assert not decay.new and s.cos_decay_steps == 99


@pytest.mark.parametrize("n", range(1, 14))
@pytest.mark.parametrize("words", ["", "--lr-schedule linear", "--lr-schedule wsd", "--warmup 3"])
def test_the_last_iteration_of_a_short_run_learns(n: int, words: str) -> None:
    _, s, lines, rates = run_of(f"--adam-iter {n} {words}")
    assert s.cos_decay_steps == (n + 1 if n < 10 else n)
    assert all(rate > 0 for rate in rates[:9]) and (rates[-1] > 0) == (n < 10)
    assert not any("rate is 0" in line for line in lines)


def test_plain_text_and_old_runs_keep_their_decay() -> None:
    for words in ("", "--compat", "--enable-restart", "--lr-schedule constant"):
        state = after(f"--adam-iter 1200 {words}", 1200, kind="raw")
        assert fields(state)[:2] == (0, 0)
        decay, _, lines, rates = run_of(f"--adam-iter 9 {words}", state, kind="raw")
        assert not decay.new and not lines
        whole = run_of(f"--adam-iter 1209 {words}", kind="raw")[3]
        if "constant" not in words:
            assert rates == whole[1200:]
    assert fields(after("--adam-iter 3", 3, kind="raw")) == (0, 0, 1000)
    # and of plain text, too, linear ends with the run
    state = after("--adam-iter 20 --lr-schedule linear --warmup 2", 20, kind="raw")
    assert run_of("--adam-iter 5 --lr-schedule linear", state, kind="raw")[0].new


def test_a_checkpoint_from_before() -> None:
    """Without the two keys, and after iterations at learning rate 0."""
    state = after("--adam-iter 20", 20)
    state.iteration = 38
    decay = run_of("--adam-iter 10", state)[0]
    assert decay.new and (decay.begin, decay.end) == (38, 48)
    short = after("--adam-iter 4", 3)
    short.decay_last, short.identity.settings["cos_decay_steps"] = 0, 4  # type: ignore[index]
    decay, _, _, rates = run_of("--adam-iter 1", short)
    assert not decay.new and rates == [0.0]  # the rest of its decay


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--adam-iter 4 --lr-decay-steps 1 --lr-decay-min 0 --warmup 0", "all 4 iterations: the"),
        (
            "--adam-iter 1 --lr-decay-steps 1 --lr-decay-min 0 --warmup 0",
            "in the only iteration",
        ),
        ("--adam-iter 9 --enable-restart --lr-decay-steps 1 --lr-decay-min 0 --warmup 0", "all 9"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "chat"])
def test_a_run_without_a_rate_is_refused(words: str, part: str, kind: str) -> None:
    with pytest.raises(UsageError, match=part):
        run_of(words, kind=kind)


def test_a_continuation_without_a_rate_is_refused() -> None:
    words = "--adam-iter 20 --lr-decay-steps 15 --lr-decay-min 0 --warmup 2"
    for kind in ("raw", "chat"):
        with pytest.raises(
            UsageError, match=r"decay ended at iteration 15 .* pass --force with a larger"
        ):
            run_of("--adam-iter 5", after(words, 20, kind=kind), kind)
    beyond = after("--adam-iter 20", 20)
    beyond.iteration = 30
    with pytest.raises(UsageError, match="leave out --lr-decay-steps"):
        run_of("--adam-iter 5 --lr-decay-steps 20", beyond)


def test_the_old_tool_is_followed_also_at_rate_0() -> None:
    _, _, lines, rates = run_of("--adam-iter 1 --compat", kind="raw")
    told = "the learning rate is 0 in the only iteration, as in the old tool"
    assert rates == [0.0] and lines[-1] == told


def test_iterations_at_rate_0_are_reported() -> None:
    lines = run_of("--adam-iter 18", after("--adam-iter 20", 12))[2]
    assert lines == [
        "the learning rate is 0 from iteration 20 to 30; pass --adam-iter 8 to stop at the "
        "end of the decay; a new decay starts if you then continue the run"
    ]
    lines = run_of("--adam-iter 20 --lr-decay-steps 15")[2]
    assert lines == ["the learning rate is 0 from iteration 15 to 20"]
    assert run_of("--adam-iter 20 --lr-decay-steps 15 --adam-min-alpha 1e-5")[2] == []
