"""The current GGUF adapter, which llama.cpp loads at run time.

The format is defined by llama.cpp's `src/llama-adapter.cpp:llama_adapter_lora_init_impl` and
`convert_lora_to_gguf.py`. The scale of each pair depends on its own rank:

    y = x Wᵀ + (alpha / rank) (x aᵀ) bᵀ

If a pair has a different scale, `b` is rescaled to compensate; with the key `nbllama.lora_r`, the
reader can undo the rescaling. The halves of the `token_embd` pair are swapped: a = B (V,
rank), b = Aᵀ (C, rank).
"""

from __future__ import annotations

import math
import re

import numpy as np

from nbllama.adapter.source import Path
from nbllama.adapter.stored import Base, Stored, joined, rounded
from nbllama.checkpoint.stored import ALPHAS
from nbllama.errors import CheckpointError, GGUFError, UsageError, shown
from nbllama.gguf_io import GGUFFile, ValueType, open_gguf, write_gguf
from nbllama.lora.slots import tensor_index
from nbllama.opt.arrays import check_finite

_ALPHA, _LORA_R, _HEAD_DIM = "adapter.lora.alpha", "nbllama.lora_r", "nbllama.head_dim"
_INVOCATION = "adapter.alora.invocation_tokens"
_SWAPPED = "token_embd.weight"
# RoPE frequencies, which some converters write into adapters. They are not weights, and are also in
# the base model.
_STRAY = re.compile(r"(?:blk\.[0-9]+\.)?(?:rope_freqs|rope_factors_(?:long|short))\.weight")


def write_gguf_lora(path: Path, stored: Stored) -> list[str]:
    """Write `stored` atomically; return a line about changes that the format required, if any.

    Raises `UsageError` if the architecture is not known, `OutputError` if the file cannot be
    written, and `OverflowError` with the name of a tensor whose values would not be finite.
    """
    base = stored.base
    if base.arch is None:
        raise UsageError("a GGUF adapter must name its architecture: pass --model-base FILE")
    tensors, inexact = [], []
    for name in sorted(stored.pairs, key=tensor_index):
        a = stored.pairs[name].a
        b, exact = stored.scaled(name, stored.alpha)
        inexact += [] if exact else [name]
        halves = (b, a.T) if name == _SWAPPED else (a, b)
        for half, x in zip(("lora_a", "lora_b"), halves, strict=True):
            tensors.append((f"{name}.{half}", np.ascontiguousarray(x)))
    metadata: list[tuple[str, object, int]] = [
        ("general.type", "adapter", ValueType.STRING),
        ("general.architecture", base.arch, ValueType.STRING),
        ("adapter.type", "lora", ValueType.STRING),
        (_ALPHA, float(np.float32(stored.alpha)), ValueType.FLOAT32),
        (_LORA_R, stored.lora_r, ValueType.UINT32),
    ]
    if base.head_dim is not None:
        metadata.append((_HEAD_DIM, base.head_dim, ValueType.UINT32))
    write_gguf(path, metadata, tensors)
    return rounded(inexact, "llama.cpp scales each pair by alpha divided by the pair's rank")


def read_gguf_lora(path: Path, base: Base) -> Stored:
    """Read a GGUF adapter, whose tensors may have any type that nbllama can decode.

    Without the key `nbllama.lora_r`, `lora_r` is the largest rank. Raises `CheckpointError` for a
    file that is damaged or not a LoRA adapter for `base`.
    """
    try:
        with open_gguf(path) as f:
            stored = _read(f, base.arch)
            f.recheck()
            return stored
    except GGUFError as e:
        raise CheckpointError(f"{e}; the adapter cannot be used") from e


def _read(f: GGUFFile, wanted: str | None) -> Stored:
    if f.metadata.get("training.type") is not None:
        raise f.error("file", "a checkpoint, not an adapter")
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (found := f.get(key, "str", "missing")) != value:
            raise f.error(f"key '{key}'", f"{shown(found)}, but must be {value}")
    arch = f.get("general.architecture", "str")
    if wanted is not None and arch != wanted:
        raise f.error(
            "key 'general.architecture'", f"{shown(arch)}, but the base model is {wanted}"
        )
    if _INVOCATION in f.metadata:
        raise f.error(f"key '{_INVOCATION}'", "an activated LoRA (aLoRA), which is not supported")
    alpha = f.get(_ALPHA, "float")
    if not ALPHAS[0] < alpha < ALPHAS[1]:
        raise f.error(f"key '{_ALPHA}'", f"{alpha}, but must be above 0 and finite")
    stray = [name for name in f.tensors if _STRAY.fullmatch(name)]
    notes = _skipped(f.path, stray)
    pairs = {}
    for name in dict.fromkeys(t.rpartition(".")[0] for t in f.tensors if t not in stray):
        halves = (f"{name}.lora_a", f"{name}.lora_b")
        if not any(half in f.tensors for half in halves):
            raise f.error(f"tensor '{shown(name)}'", "not half of a LoRA pair")
        a, b = (_matrix(f, half) if half in f.tensors else None for half in halves)
        if name == _SWAPPED:
            a, b = (None if b is None else b.T), a
        pairs[name] = joined(f.path, name, a, b)
    if 2 * len(pairs) != len(f.tensors) - len(stray):
        raise f.error("file", "contains tensors other than LoRA pairs")
    if not pairs:
        raise f.error("file", "contains no pairs")
    largest = max(pair.rank for pair in pairs.values())
    lora_r = f.count(_LORA_R, 1 << 20, low=1, default=largest)
    head_dim = f.count(_HEAD_DIM, 1 << 20, low=1, default=None)
    stored = Stored(alpha, lora_r, pairs, dict.fromkeys(pairs, alpha), Base(arch, head_dim), notes)
    return stored.with_one_scale() if _LORA_R in f.metadata else stored


def _skipped(path: str, stray: list[str]) -> tuple[str, ...]:
    """Return a line about skipped tensors, which are constants of the base model."""
    if not stray:
        return ()
    listed = ", ".join(stray[:3]) + (", ..." if len(stray) > 3 else "")
    return (f"{shown(path, 400)}: constants of the base model are ignored: {listed}",)


def _matrix(f: GGUFFile, name: str) -> np.ndarray:
    """Read one half of a pair as a finite float32 copy; F16, Q8_0 and other types are decoded.

    A half has two dimensions, or three if it contains all experts.
    """
    info = f.tensors[name]
    shape = (1, *info.shape) if len(info.shape) == 1 else info.shape
    if len(shape) > 3:
        raise f.error(f"tensor '{shown(name)}'", f"{len(shape)} dimensions, but must be 2 or 3")
    if info.type_id == 0:
        x = f.data(name).view("<f4").astype(np.float32)
    else:
        from nbllama.quants import QUANTS, decode

        if info.type_id not in QUANTS:
            raise f.error(f"tensor '{shown(name)}'", "its type is not a weight type")
        x = decode(info.type_id, f.data(name), math.prod(shape))
    if check_finite({name: x}):
        raise f.error(f"tensor '{shown(name)}'", "contains a NaN or an infinity")
    return x.reshape(shape)
