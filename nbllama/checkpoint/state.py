"""The state of a training run in memory, and the layout of its tensors in checkpoints.

Each field of `TrainState` declares the key (`nbllama.checkpoint.stored`) under which
`nbllama.checkpoint.file` writes and reads it.

Tensors in files use the layout of llama.cpp's `finetune`: rank is the fastest dimension, so A is
transposed but B is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nbllama.checkpoint.identity import Identity
from nbllama.checkpoint.stored import MAX_ITERATION, stored_group, stored_key
from nbllama.errors import shown
from nbllama.gguf_io import GGUFFile, ValueType
from nbllama.lora.pairs import Adapter, Pair
from nbllama.lora.slots import slot_of
from nbllama.opt.arrays import check_finite

FIRST, SECOND = "optimizer.adam.first_moments", "optimizer.adam.second_moments"
PAST_LOSSES = "optimizer.adam.past_loss_values"
U32, U64, F32 = ValueType.UINT32, ValueType.UINT64, ValueType.FLOAT32


class FlatMoments(NamedTuple):
    """Both moments, each as one float32 vector [n_parameters] of concatenated tensors.

    The file does not record the order of the tensors (`legacy_moments`). Within each tensor,
    elements are in file order.
    """

    first: np.ndarray
    second: np.ndarray


@dataclass
class TrainState:
    """Everything needed to resume a run with bit-identical results.

    The counters start at the first run and continue when a run is resumed. `m` and `v` contain the
    moments by parameter name, in the shapes of the parameters. In a state from an old checkpoint,
    `moments` is used instead. `n_samples` is the number of samples in the data, and `next_sample`
    is the index of the next sample in the order of `epoch`. `rng_state` is the random state at the
    start of `epoch` for the old tool's order (`data.feed.OldFeed`). `validation` contains the
    fields of `train.validation.Validation`, and `past_losses` contains the most recent losses
    (`train.convergence`). `decay_begin` and `decay_last` are described in `train.run.decay`, and
    `environment` in `checkpoint.environment`.
    """

    identity: Identity
    adapter: Adapter
    m: dict[str, np.ndarray]
    v: dict[str, np.ndarray]
    seed: int = stored_key("nbllama.seed", U64, at_most=(1 << 64) - 1)
    n_samples: int = stored_key("training.shuffle.sample_count", U64)
    iteration: int = stored_key("training.iteration_count", U64, 0, at_most=MAX_ITERATION)
    sample_count: int = stored_key("training.sample_count", U64, 0)
    token_count: int = stored_key("training.token_count", U64, 0)
    epoch: int = stored_key("training.epoch_count", U64, 0)
    next_sample: int = stored_key("training.shuffle.next_sample", U64, 0)
    decay_begin: int = stored_key("nbllama.decay_begin", U64, 0, optional=True, at_most=1 << 32)
    decay_last: int = stored_key("nbllama.decay_last", U64, 0, optional=True, at_most=1 << 32)
    rng_state: str = stored_key("training.shuffle.rng_state", ValueType.STRING, "", optional=True)
    no_improvement: int = stored_key(
        "optimizer.adam.no_improvement_count", U32, 0, at_most=MAX_ITERATION
    )
    best_loss: float = stored_key("optimizer.adam.best_loss", F32, 0.0)
    previous_loss: float = stored_key("optimizer.adam.previous_loss", F32, 0.0)
    environment: dict[str, str] = stored_group("nbllama.environment.", ValueType.STRING)
    validation: dict[str, float] = stored_group("nbllama.validation.", ValueType.FLOAT64)
    past_losses: tuple[float, ...] = ()
    moments: FlatMoments | None = None

    @property
    def old(self) -> bool:
        """Whether the state was read from a checkpoint written by the old tool."""
        return self.moments is not None


def legacy(name: str, x: np.ndarray) -> np.ndarray:
    """Transpose A but not B, to convert to or from the old tool's orientation (rank fastest)."""
    return np.ascontiguousarray(x.swapaxes(-1, -2) if name.endswith(".lora_a") else x)


def array(f: GGUFFile, name: str) -> np.ndarray:
    """Return a copy of a float32 tensor with its numpy shape. All values must be finite."""
    if name not in f.tensors:
        raise f.error(f"tensor '{name}'", "is missing")
    info = f.tensors[name]
    if info.type_id != 0:
        raise f.error(f"tensor '{shown(name)}'", "must be F32")
    x = f.data(name).view("<f4").reshape(info.shape).astype(np.float32)
    if check_finite({name: x}):
        raise f.error(f"tensor '{shown(name)}'", "contains a NaN or an infinity")
    return x


def pairs(f: GGUFFile, stored: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """Read pairs from tensors in the old orientation: (n_in, rank) and (n_out, rank)."""
    found = {}
    for base in dict.fromkeys(name.rpartition(".")[0] for name in stored):
        a, b = stored.get(f"{base}.lora_a"), stored.get(f"{base}.lora_b")
        if a is None or b is None or slot_of(base) is None:
            raise f.error(f"tensor '{shown(base)}.lora_*'", "not the two halves of a LoRA pair")
        same = a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-1]
        if not 2 <= a.ndim == b.ndim <= 3 or not same:
            raise f.error(f"tensor '{shown(base)}.lora_*'", f"{a.shape} does not match {b.shape}")
        found[base] = Pair(legacy(".lora_a", a), b)
    if not found or 2 * len(found) != len(stored):
        raise f.error("file", "its tensors are not the pairs of a LoRA run")
    return found


def split(flat: np.ndarray, order: list[str], adapter: Adapter) -> dict[str, np.ndarray]:
    """Split a moment vector into one array per parameter, in this program's orientation and order.

    `order` lists all parameter names in the order of `flat`.
    """
    params = adapter.parameters()
    parts = np.split(flat, np.cumsum([params[p].size for p in order])[:-1])
    shapes = {
        p: x.swapaxes(-1, -2).shape if p.endswith(".lora_a") else x.shape for p, x in params.items()
    }
    found = {p: part.reshape(shapes[p]) for p, part in zip(order, parts, strict=True)}
    return {p: legacy(p, found[p]) for p in params}


def vector(f: GGUFFile, name: str, n: int) -> np.ndarray:
    """Read a float32 tensor [n]. All values must be finite."""
    flat = array(f, name)
    if flat.shape != (n,):
        raise f.error(f"tensor '{name}'", f"shape {flat.shape}, expected ({n},)")
    return flat


def check_moments(f: GGUFFile, second: np.ndarray) -> None:
    """Raise an error if a second moment is negative; means of squares cannot be negative."""
    if second.size and second.min() < 0:
        raise f.error(f"tensor '{SECOND}'", "contains a negative value")
