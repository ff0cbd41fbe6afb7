"""LoRA pairs: their kinds, their initialisation, and what they add to the base tensors.

    y = x Wᵀ + s · (x Aᵀ) Bᵀ        W (n_out, n_in)   A (rank, n_in)   B (n_out, rank)

with the same scale `s = alpha / lora_r` for every tensor, regardless of its rank. All arrays are
float32. There are four kinds of base tensors:

| kind | base | A | B | added to the base |
|---|---|---|---|---|
| linear | (n_out, n_in) | (rank, n_in) | (n_out, rank) | `s · B A` |
| embedding | (V, C) | (rank, C) | (V, rank) | row `tok`: `s · B[tok] A` |
| norm | (n,) | (rank, n) | (1, rank) | `s · (B A)[0]` |
| experts | (E, n_out, n_in) | (E, rank, n_in) | (E, n_out, rank) | `s · B[e] A[e]` |

Source: "LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021. Names and tensor order
follow llama.cpp's `finetune.cpp:init_lora`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nbllama.errors import UsageError
from nbllama.lora.slots import (
    EVERY_SLOT,
    SLOT_BY_NAME,
    SLOTS,
    base_names,
    pair_shape,
    slot_of,
    tensor_index,
)

if TYPE_CHECKING:
    from nbllama.arch import Hparams

__all__ = ["NO_LAYER", "SLOTS", "Adapter", "Pair", "delta", "init_adapter"]

NO_LAYER = 1 << 30
_INIT_STREAM = 1 << 32  # distinguishes these Philox keys from the keys for the data order


@dataclass(frozen=True)
class Pair:
    """The two factors for one base tensor: a (rank, n_in) and b (n_out, rank), float32.

    For expert tensors, both shapes begin with the number of experts.
    """

    a: np.ndarray
    b: np.ndarray

    def __post_init__(self) -> None:
        for half in (self.a, self.b):
            if half.dtype != np.float32 or not half.flags.c_contiguous:
                raise ValueError("both halves of a pair must be C-contiguous and float32")
            if half.ndim not in (2, 3) or half.shape[:-2] != self.a.shape[:-2]:
                raise ValueError(
                    f"a {self.a.shape} and b {self.b.shape} must both be 2-D, or 3-D with the same "
                    "first dimension"
                )
        if self.a.shape[-2] != self.b.shape[-1] or self.rank < 1:
            raise ValueError(f"a {self.a.shape} and b {self.b.shape} do not have the same rank")

    @property
    def rank(self) -> int:
        """The rank of the pair, which is the number of rows of A and the number of columns of B."""
        return int(self.a.shape[-2])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (n_out, n_in) of the base tensor, or (n_expert, n_out, n_in) for experts."""
        return (*self.b.shape[:-1], int(self.a.shape[-1]))


@dataclass
class Adapter:
    """All pairs of an adapter, keyed by base tensor name, in the order of `finetune.cpp`."""

    arch: str
    alpha: float
    lora_r: int
    pairs: dict[str, Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs = {name: self.pairs[name] for name in sorted(self.pairs, key=tensor_index)}

    @property
    def scale(self) -> float:
        """The scale s = alpha / lora_r, which is the same for all pairs."""
        return self.alpha / self.lora_r

    @property
    def n_parameters(self) -> int:
        """The number of trained values."""
        return sum(pair.a.size + pair.b.size for pair in self.pairs.values())

    def parameters(self) -> dict[str, np.ndarray]:
        """Return the trained arrays (not copies), named NAME.lora_a and NAME.lora_b."""
        out = {}
        for name, pair in self.pairs.items():
            out[f"{name}.lora_a"] = pair.a
            out[f"{name}.lora_b"] = pair.b
        return out

    def misfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Describe the first pair that does not match a base model with these tensor shapes.

        Returns None if all pairs match.
        """
        for name, pair in self.pairs.items():
            if name not in shapes:
                return f"{name} has a pair, but the base model has no such tensor"
            if pair.shape != (wanted := pair_shape(shapes[name])):
                return (
                    f"the pair for {name} has shape {pair.shape}, but the base model requires "
                    f"{wanted}"
                )
        return None

    def lowest_layer(self) -> int:
        """Return the lowest block that has a pair; the backward pass can stop there.

        Returns 0 if the embedding has a pair, because the gradient must then pass through every
        block, and `NO_LAYER` if no block has a pair.
        """
        if "token_embd.weight" in self.pairs:
            return 0
        found = (slot_of(name) for name in self.pairs)
        return min((s[1] for s in found if s and s[0].in_block), default=NO_LAYER)


def block_of(name: str) -> int:
    """Return the block that a base tensor belongs to, or -1 if it is not in a block.

    Raises `KeyError` if the tensor has no slot.
    """
    found = slot_of(name)
    if found is None:
        raise KeyError(name)
    return found[1]


def delta(pair: Pair, scale: float) -> np.ndarray:
    """Compute the update to the base tensor: `scale · B A`, float32 (n_out, n_in)."""
    added: np.ndarray = np.float32(scale) * (pair.b @ pair.a)
    return added


def init_adapter(
    hp: Hparams,
    ranks: Mapping[str, int],
    *,
    alpha: float,
    lora_r: int,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    layers: Container[int] | None = None,
) -> Adapter:
    """Create an adapter with b = 0 and a = clamp(N(0, 1), -1, 1) / √(rank + n_in).

    Because b is 0, the adapter has no effect until it is trained. The distribution of a is the same
    as in `finetune.cpp:randomize_lora`, but the values come from a different random stream: numpy's
    Philox, keyed by (seed, tensor index). The values for a tensor therefore do not depend on the
    other pairs.

    `ranks` maps slot names to ranks; a missing rank or 0 means no pair. As in `finetune.cpp`, a
    rank above min(n_out, n_in) is allowed, but it costs time and has no benefit over the full rank.
    `shapes` contains the numpy shapes of the base tensors, (n_out, n_in) or (n,). `seed` is from 0
    to 2^64 - 1. `layers` lists the blocks that receive pairs; None means all blocks.

    Raises `UsageError` if a rank is given for a tensor that is not in the model.
    """
    pairs = {}
    used = set()
    for slot, name in base_names(hp.n_layer, EVERY_SLOT):
        rank = ranks.get(slot.name, 0)
        if rank == 0 or name not in shapes:
            continue
        used.add(slot.name)
        if slot.in_block and layers is not None and block_of(name) not in layers:
            continue
        *experts, n_out, n_in = pair_shape(shapes[name])
        key = np.array([seed, _INIT_STREAM + tensor_index(name)], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        a = rng.standard_normal((*experts, rank, n_in), dtype=np.float32)
        np.clip(a, -1, 1, out=a)
        a /= np.float32(np.sqrt(rank + n_in))
        pairs[name] = Pair(a, np.zeros((*experts, n_out, rank), np.float32))
    for asked, rank in ranks.items():
        if asked not in SLOT_BY_NAME:
            raise KeyError(asked)
        if rank and asked not in used:
            option = asked.replace("_", "-")
            tied = " (its output is tied to token_embd)" if asked == "out" else ""
            raise UsageError(
                f"--rank-{option} {rank}: this model has no "
                f"{SLOT_BY_NAME[asked].tensor}.weight{tied}; leave the option out or pass 0"
            )
    return Adapter(hp.arch, alpha, lora_r, pairs)
