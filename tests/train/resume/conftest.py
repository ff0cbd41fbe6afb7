"""A text that ends within a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.toy_runs import toy_text


@pytest.fixture
def folder(folder: Path) -> Path:
    """With 52 samples at --ctx 16: an epoch of `args_in` ends within iteration 13."""
    toy_text(folder / "text.txt", 112)
    return folder
