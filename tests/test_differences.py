"""The helper that measures and bounds differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.differences import compare, record, relative, table


def test_relative_is_to_the_largest_number_wanted() -> None:
    wanted = np.array([1.0, -4.0])
    assert relative(np.array([1.0, -4.4]), wanted) == pytest.approx(0.1)
    assert relative(wanted, wanted) == 0
    assert relative(np.array([0.5, 0.0]), np.zeros(2)) == 0.5


@pytest.mark.parametrize("got", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.zeros(3)])
def test_what_cannot_be_compared_is_infinitely_far(got: np.ndarray) -> None:
    assert relative(got, np.array([1.0, 2.0])) == float("inf")


def test_bounds_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "differences.jsonl"
    monkeypatch.setenv("NBLLAMA_DIFFERENCES", str(path))
    assert record("a", 1e-7, 1e-6) == 1e-7
    assert compare("a", np.array([2.0]), np.array([1.0]), 1.5) == 1.0
    with pytest.raises(AssertionError, match="b: difference 2 is over 1"):
        record("b", 2.0, 1.0)
    with pytest.raises(AssertionError, match="inf"):
        record("c", float("nan"), 1.0)
    assert table(path.read_text().splitlines()).splitlines()[2:] == [
        "| a | 1.00e+00 | 2e+00 |",
        "| b | 2.00e+00 | 1e+00 |",
        "| c | inf | 1e+00 |",
    ]
