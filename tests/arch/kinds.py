"""The kinds of models that the default suite tests in full, and those of the slow suite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from examples.toy_archs import MODELS

ALIKE = {
    "smollm3, 3B (no RoPE in every fourth block)",
    "gemma, 2B and 7B",
    "mistral3, without them",
    "ernie4_5, 0.3B",
    "ernie4_5, with biases",
    "seed_oss, 36B",
    "hunyuan-dense, with rope.scaling.alpha",
    "qwen2vl, 2B to 72B, text",
    "qwen3vl, 2B to 32B, text",
    "olmo2, OLMo 2",
    "olmo2, OLMo 3 with YaRN",
    "exaone4, 1.2B",
    "exaone4, 32B (windows)",
    "nemotron, Minitron 4B and 8B",
    "stablelm, 3B (partial RoPE)",
    "stablelm, StableLM 2 1.6B (biases)",
    "command-r, 35B",
    "command-r, without a logit scale",
    "lfm2, with a window",
    "qwen35, 0.8B and 2B",
    "qwen35, with extra prediction blocks",
    "olmoe, 1B-7B",
    "granitemoe, 1B-A400M and 3B-A800M",
    "granitemoe, with a shared expert",
    "ernie4_5-moe, 21B-A3B and 300B-A47B",
    "glm4moe, 4.5 and 4.6, 355B (per-head norms)",
}
"""Kinds whose computations all occur in other kinds: the default suite compares their logits, and
a token's program."""


def kinds(names: Iterable[str] = MODELS, also_slow: Iterable[str] = ()) -> list[Any]:
    """Parameters of a test: these kinds; similar ones are marked slow."""
    slow = ALIKE | set(also_slow)
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in names]


def by_table(name: str) -> bool:
    """Whether the kind has GELU, which ggml looks up in a float16 table."""
    return name.startswith(("gemma", "starcoder2", "phi2"))
