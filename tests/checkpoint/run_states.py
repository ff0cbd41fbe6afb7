"""States of small imaginary runs, and forged checkpoints, for the tests of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nbllama.checkpoint.file import SHA_KEY
from nbllama.checkpoint.identity import Identity, Setting, digest
from nbllama.checkpoint.state import TrainState
from nbllama.gguf_io import ValueType, open_gguf, write_gguf
from nbllama.lora.pairs import Adapter, init_adapter
from nbllama.lora.slots import EVERY_SLOT, SLOTS, base_names
from nbllama.opt.adamw import AdamW

MODEL = {
    "embedding_length": 24, "feed_forward_length": 40, "attention.head_count": 4,
    "attention.head_count_kv": 2, "block_count": 2, "rope.dimension_count": 6,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), "rope.freq_base": 10000.0,
    "rope.scale_linear": 1.0,
}  # fmt: skip
SHAPES = {
    name: (24,) if slot.kind == "norm" else {"w2": (24, 40)}.get(slot.name, (40, 24))
    for slot, name in base_names(2)
}
RANKS = {slot.name: 1 if slot.kind == "norm" else 4 for slot in SLOTS}
SETTINGS: dict[str, Setting] = {
    "adam_alpha": 0.1 + 0.2,
    "batch": 4,
    "ctx": 64,
    "data_kind": "raw",
    "restart": False,
}
SEED = 2**63 + 5


@dataclasses.dataclass
class FakeHparams:
    arch: str = "llama"
    n_layer: int = 2


HP: Any = FakeHparams()


def identity(ranks: dict[str, int] | None = None, **changed: Any) -> Identity:
    ranks = {slot.name: (ranks or RANKS).get(slot.name, 0) for slot in EVERY_SLOT}
    same = Identity(
        arch="llama", lora_r=4, lora_alpha=0.1, ranks=ranks, base="b" * 64, data="d0" * 32,
        model=MODEL, settings=SETTINGS,
    )  # fmt: skip
    return dataclasses.replace(same, **changed)


def optimiser(ranks: dict[str, int] | None = None, steps: int = 3) -> tuple[Adapter, AdamW]:
    adapter = init_adapter(HP, ranks or RANKS, alpha=0.1, lora_r=4, seed=1, shapes=SHAPES)
    opt = AdamW(adapter.parameters())
    for step in range(steps):
        opt.step(gradients(opt, step))
    return adapter, opt


def gradients(opt: AdamW, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {n: rng.standard_normal(x.shape).astype(np.float32) for n, x in opt.params.items()}


def make_state(ranks: dict[str, int] | None = None, **counters: Any) -> TrainState:
    adapter, opt = optimiser(ranks)
    numbers: dict[str, Any] = {
        "seed": SEED, "iteration": opt.iteration, "sample_count": 12, "token_count": 10**12,
        "epoch": 2, "next_sample": 5, "n_samples": 7, "no_improvement": 1, "best_loss": 2.5,
        "previous_loss": 3.25, "environment": {"cpu": "znver9", "numpy": "9.9"},
    }  # fmt: skip
    return TrainState(identity(ranks), adapter, opt.m, opt.v, **numbers | counters)


def assert_same(a: TrainState, b: TrainState) -> None:
    assert a.identity == b.identity
    for name in ("arch", "alpha", "lora_r"):
        assert getattr(a.adapter, name) == getattr(b.adapter, name)
    for x, y in ((a.adapter.parameters(), b.adapter.parameters()), (a.m, b.m), (a.v, b.v)):
        assert list(x) == list(y)
        for name in x:
            assert y[name].dtype == np.float32 and y[name].flags.c_contiguous
            assert y[name].flags.writeable
            np.testing.assert_array_equal(x[name], y[name])
    skip = {"identity", "adapter", "m", "v"}
    for f in dataclasses.fields(TrainState):
        if f.name not in skip:
            assert getattr(a, f.name) == getattr(b, f.name), f.name
            assert type(getattr(a, f.name)) is type(getattr(b, f.name)), f.name


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change keys (name -> (value, type)) and tensors of a file, with a sha256 that is right."""
    with open_gguf(path) as f:
        entries = {k: (v, t) for k, v, t in f.entries() if k != SHA_KEY}
        tensors = {
            t.name: f.data(t.name).view(np.float32).reshape(t.shape).copy()
            for t in f.tensors.values()
        }
    change(entries, tensors)
    rows = [(k, *v) for k, v in entries.items()]
    sha = digest(rows, ((n, x.shape, x) for n, x in tensors.items()))
    write_gguf(path, [*rows, (SHA_KEY, sha, ValueType.STRING)], list(tensors.items()))
