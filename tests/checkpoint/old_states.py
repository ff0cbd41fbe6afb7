"""Checkpoints in the format of the old tool: both layouts, any order of moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nbllama.data import MT19937
from nbllama.gguf_io import ValueType, write_gguf
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import SLOTS

U32, U64 = ValueType.UINT32, ValueType.UINT64
F32, TEXT = ValueType.FLOAT32, ValueType.STRING


def legacy(name: str, x: np.ndarray) -> np.ndarray:
    """A parameter in the old tool's memory layout: rank fastest."""
    return np.ascontiguousarray(x.T if name.endswith("_a") else x)


def old_keys(
    ranks: dict[str, int], n_parameters: int, sizes: dict[str, int], *, version: int = 1
) -> dict[str, tuple[Any, ValueType]]:
    """Keys with their types, in the order of the old writer. `version` 0: without epoch and
    order, counts of 32 bits, as the converter of still older files made them.
    """
    keys: dict[str, tuple[Any, ValueType]] = {
        "training.type": ("finetune_lora", TEXT),
        "general.architecture": ("llama", TEXT),
        "general.file_type": (0, U32),
        "llama.context_length": (16, U32),
    }
    keys |= {f"llama.{name}": (size, U32) for name, size in sizes.items()}
    keys |= {
        "llama.attention.layer_norm_rms_epsilon": (1e-5, F32),
        "llama.rope.freq_base": (10000.0, F32),
        "llama.rope.scale_linear": (1.0, F32),
    }
    keys |= {f"training.lora.rank.{s.tensor}": (ranks[s.name], U32) for s in SLOTS}
    count = U64 if version else U32
    keys |= {
        "training.file_version": (version, U32),
        "training.iteration_count": (3, count),
        "training.sample_count": (6, count),
        "training.token_count": (96, count),
    }
    if version:
        keys |= {
            "training.epoch_count": (0, U64),
            "training.shuffle.samples_hash": (12345, U64),
            "training.shuffle.rng_state": (MT19937.seeded(11).text(), TEXT),
            "training.shuffle.sample_count": (9, U64),
            "training.shuffle.next_sample": (6, U64),
        }
    return keys | {
        "optimizer.file_version": (0, U32),
        "optimizer.convergence_past_count": (0, U32),
        "optimizer.parameter_count": (n_parameters, U64),
        "optimizer.iteration_count": (3, U32),
        "optimizer.just_initialized": (False, ValueType.BOOL),
        "optimizer.type": ("adam", TEXT),
        "optimizer.adam.best_loss": (5.5, F32),
        "optimizer.adam.previous_loss": (5.25, F32),
        "optimizer.adam.no_improvement_count": (2, U32),
    }


def old_tensors(
    adapter: Adapter,
    m: dict[str, np.ndarray],
    v: dict[str, np.ndarray],
    order: list[str],
    *,
    drop_ones: bool,
) -> dict[str, np.ndarray]:
    """`drop_ones`: the layout of July 2024, where ne = [rank, 1] has one dimension."""
    tensors = {}
    for name, x in adapter.parameters().items():
        flat = legacy(name, x)
        tensors[name] = flat[0] if drop_ones and len(flat) == 1 else flat
    for key, moments in (("first", m), ("second", v)):
        parts = [legacy(name, moments[name]).ravel() for name in order]
        tensors[f"optimizer.adam.{key}_moments"] = np.concatenate(parts)
    return tensors


def write(
    path: Path, keys: dict[str, tuple[Any, ValueType]], tensors: dict[str, np.ndarray]
) -> Path:
    write_gguf(path, [(k, *v) for k, v in keys.items()], list(tensors.items()))
    return path
