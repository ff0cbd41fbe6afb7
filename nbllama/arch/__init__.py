"""The supported architectures, and the sizes and constants of a model read from its file.

Each architecture is a row of data in `families`, and its name occurs nowhere else. To add an
architecture, add a row. If the architecture differs from the others in a new way, also add a field
to `ArchRow` and `Hparams`.
"""

from __future__ import annotations

from nbllama.arch.blocks import BlockSizes
from nbllama.arch.expected import ExpectedTensor, expected_tensors, unused_tensors
from nbllama.arch.from_gguf import hparams_from_gguf
from nbllama.arch.hparams import (
    DeltaNet,
    Hparams,
    Rope,
    RopeScaling,
    Temperature,
    context_warnings,
    with_overrides,
)
from nbllama.arch.rows import ARCHS, HF_MODULES, OLD_TOOL_ARCH, ROPE_FACTORS, ArchRow, TensorRow

__all__ = [
    "ARCHS",
    "HF_MODULES",
    "OLD_TOOL_ARCH",
    "ROPE_FACTORS",
    "ArchRow",
    "BlockSizes",
    "DeltaNet",
    "ExpectedTensor",
    "Hparams",
    "Rope",
    "RopeScaling",
    "Temperature",
    "TensorRow",
    "context_warnings",
    "expected_tensors",
    "hparams_from_gguf",
    "unused_tensors",
    "with_overrides",
]
