"""A file of one architecture, and the path to which a test writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.arch.files import Model


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"
