"""Early ends of a run, compared with a plain version of the old optimiser's loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.train.convergence import Convergence


def old_loop(
    losses: list[float], iter0: int, past: int, delta: float, patience: int, epsf: float
) -> tuple[int, list[float]]:
    """Index of the evaluation that ends ggml_opt_adam of 2024 (or the number of losses), and its
    ring. losses[0] is the evaluation before the first update.
    """
    f = [np.float32(x) for x in losses]
    ring = [np.float32(0)] * past
    prev = best = f[0]
    worse = 0
    if past:
        ring[iter0 % past] = f[0]
    for t, fx in enumerate(f[1:]):
        if abs(fx - prev) / fx < epsf:
            return t + 1, [float(x) for x in ring]
        if past:
            if past <= iter0 + t:
                rate = (ring[(iter0 + t) % past] - fx) / fx
                if abs(rate) < delta:
                    return t + 1, [float(x) for x in ring]
            ring[(iter0 + t) % past] = fx
        if patience > 0:
            if best > fx:
                best, worse = fx, 0
            else:
                worse += 1
                if worse >= patience:
                    return t + 1, [float(x) for x in ring]
        prev = fx
    return len(losses), [float(x) for x in ring]


LOSSES = st.lists(st.sampled_from([1.0, 1.25, 1.5, 2.0, 2.5, 4.0, 8.0]), min_size=1, max_size=12)


@given(
    LOSSES, st.integers(0, 7), st.integers(0, 4), st.sampled_from([0.0, 0.001, 0.3]),
    st.integers(0, 3), st.sampled_from([-1.0, 0.0, 0.01, 0.3]),
)  # fmt: skip
def test_as_the_old_optimiser(
    losses: list[float], iter0: int, past: int, delta: float, patience: int, epsf: float
) -> None:
    wanted, ring = old_loop(losses, iter0, past, delta, patience, epsf)
    tests = Convergence(past, delta, patience, epsf)
    ended = len(losses)
    for i, loss in enumerate(losses):
        if tests.reached(loss, iter0 + i):
            ended = i
            break
    assert ended == wanted
    if ended == len(losses):
        assert tests.past_losses == ring


@given(LOSSES, st.integers(0, 12), st.integers(0, 3), st.integers(0, 3))
def test_a_continued_run_ends_where_the_whole_one_does(
    losses: list[float], cut: int, past: int, patience: int
) -> None:
    def end(tests: Convergence, start: int, stop: int) -> int | None:
        return next((i for i in range(start, stop) if tests.reached(losses[i], i)), None)

    cut = min(cut, len(losses))
    options: Any = dict(past=past, delta=0.2, max_no_improvement=patience, epsf=0.01)
    whole = Convergence(**options)
    first = Convergence(**options)
    end_of_whole, end_of_first = end(whole, 0, len(losses)), end(first, 0, cut)
    if end_of_first is not None:
        assert end_of_whole == end_of_first
        return
    second = Convergence(
        **options, best=first.best, previous=first.previous, no_improvement=first.no_improvement,
        past_losses=list(first.past_losses),
    )  # fmt: skip
    assert end(second, cut, len(losses)) == end_of_whole


def test_reasons_name_their_option() -> None:
    for options, word in (
        ({"epsf": 0.1}, "--adam-epsf"),
        ({"past": 1, "delta": 0.1}, "--opt-past"),
        ({"max_no_improvement": 1}, "--opt-max-no-improvement"),
    ):
        tests = Convergence(**options)
        reasons = [tests.reached(2.0, i) for i in range(3)]
        assert word in next(filter(None, reasons))


def test_a_loss_that_is_not_finite_ends_nothing_and_is_not_kept() -> None:
    tests = Convergence(past=2, delta=1e9, max_no_improvement=1, epsf=1e9)
    for bad in (math.nan, math.inf):
        assert tests.reached(bad, 0) == ""
    assert math.isnan(tests.previous)
    assert tests.past_losses == [0.0, 0.0]
    assert tests.reached(2.0, 1) == ""
    assert tests.previous == 2.0


def test_another_length_of_the_ring_begins_anew() -> None:
    assert Convergence(past=3, past_losses=[1.0, 2.0]).past_losses == [0.0] * 3
    with pytest.raises(TypeError):
        Convergence(window=3)  # type: ignore[call-arg]
