"""Adapters to convert, and their effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nbllama.adapter.stored import Base, Stored
from nbllama.arch import Hparams, hparams_from_gguf
from nbllama.gguf_io import open_gguf
from nbllama.lora.pairs import Adapter, init_adapter
from nbllama.lora.slots import SLOTS

ALL = tuple(slot.name for slot in SLOTS)
NORMS = ("att_norm", "ffn_norm", "out_norm")
LINEARS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
Shapes = dict[str, tuple[int, ...]]


def model(path: Path) -> tuple[Hparams, Shapes]:
    with open_gguf(path) as f:
        return hparams_from_gguf(f), {t.name: t.shape for t in f.tensors.values()}


def trained(path: Path, ranks: dict[str, int], alpha: float, lora_r: int) -> Adapter:
    """An adapter for the model at `path`, both halves random."""
    hp, shapes = model(path)
    adapter = init_adapter(hp, ranks, alpha=alpha, lora_r=lora_r, seed=5, shapes=shapes)
    rng = np.random.default_rng(6)
    for pair in adapter.pairs.values():
        pair.b[:] = 0.3 * rng.standard_normal(pair.b.shape)
    return adapter


def stored(path: Path, ranks: dict[str, int], alpha: float, lora_r: int) -> Stored:
    return Stored.of(trained(path, ranks, alpha, lora_r), Base.of(model(path)[0]))


def same_bits(a: Stored, b: Stored) -> bool:
    """The same pairs in the same bits, and the same factor for each (as float32)."""
    if list(sorted(a.pairs)) != list(sorted(b.pairs)):
        return False
    for name, x in a.pairs.items():
        y = b.pairs[name]
        if x.a.tobytes() != y.a.tobytes() or x.b.tobytes() != y.b.tobytes():
            return False
        if x.a.shape != y.a.shape or x.b.shape != y.b.shape:
            return False
        if np.float32(a.alphas[name]) != np.float32(b.alphas[name]):
            return False
    return np.float32(a.alpha / a.lora_r) == np.float32(b.alpha / b.lora_r)
