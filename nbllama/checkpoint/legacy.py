"""Read checkpoints written by llama.cpp's `finetune` (November 2023 and July 2024 versions).

This module follows `finetune.cpp:load_checkpoint_lora_gguf` and `train.cpp:load_train_state_gguf`.

Old checkpoints do not contain:

- alpha and r (the old tool had no scale, which is equivalent to alpha = r);
- seed, learning rates and data options (given on the command line each time);
- the identity of the base model and data (the files contain only the sizes and the number of
  samples);
- the order of the tensors inside the moment vectors (`legacy_moments`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nbllama.arch.from_gguf import MAX_LAYERS
from nbllama.checkpoint.identity import MODEL_KEYS, Identity
from nbllama.checkpoint.state import (
    FIRST,
    PAST_LOSSES,
    SECOND,
    FlatMoments,
    TrainState,
    array,
    check_moments,
    pairs,
    vector,
)
from nbllama.checkpoint.stored import MAX_ITERATION, MAX_PAST, MAX_RANK, MOST
from nbllama.data.mt19937 import MT19937
from nbllama.errors import DataError, shown
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT
from nbllama.lora.pairs import Adapter, Pair
from nbllama.lora.slots import SLOTS, base_names, slot_of

_RANK, _SHUFFLE = "training.lora.rank.", "training.shuffle."
_OUR_KEY = "nbllama."
_OPTIONAL = (
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.dimension_count",
)
_REQUIRED = (
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "block_count",
)


def is_old(metadata: Mapping[str, object]) -> bool:
    """Return whether a file looks like a checkpoint but has no `nbllama.*` key."""
    ours = any(key.startswith(_OUR_KEY) for key in metadata)
    kind = metadata.get("training.type", "finetune_lora")
    ranks = any(key.startswith(_RANK) for key in metadata)
    return not ours and kind == "finetune_lora" and ranks


def read_old(f: GGUFFile) -> TrainState:
    """Read the state from an old checkpoint, leaving the moments as flat vectors.

    Raises `GGUFError` if a key or tensor is missing, or has a wrong type or an impossible value.
    """
    arch = f.get("general.architecture", "str")
    if (kind := f.count("general.file_type", 1 << 31)) != 0:
        raise f.error("key 'general.file_type'", f"{kind}, but an old checkpoint has 0 (all F32)")
    ranks = {slot.name: f.count(_RANK + slot.tensor, MAX_RANK) for slot in SLOTS}
    stored = {}
    for name in f.tensors:
        if name not in (FIRST, SECOND, PAST_LOSSES):
            x = array(f, name)
            # The 2024 version omits a last dimension of 1.
            stored[name] = x[None, :] if x.ndim == 1 else x
    found = pairs(f, stored)
    _check_ranks(f, found, ranks)
    model = _model(f, arch)
    wanted = {name for _, name in base_names(int(model["block_count"]))}
    if odd := sorted(wanted ^ found.keys()):
        raise f.error(f"tensor '{odd[0]}.lora_a'", "is missing or unexpected")
    linear = [ranks[slot.name] for slot in SLOTS if slot.kind != "norm"]
    lora_r = max(set(linear), key=linear.count)
    adapter = Adapter(arch, float(lora_r), lora_r, found)
    ctx = f.count(f"{arch}.context_length", 1 << 24, default=0)
    settings = {"ctx": ctx} if ctx else {}
    identity = Identity(
        arch=arch, lora_r=lora_r, lora_alpha=float(lora_r), ranks=ranks, model=model,
        settings=settings,
    )  # fmt: skip
    numbers = _counters(f) | _optimiser(f)
    n = adapter.n_parameters
    if (stated := f.count("optimizer.parameter_count", 1 << 53)) != n:
        raise f.error(
            "key 'optimizer.parameter_count'", f"{stated}, but the tensors have {n} elements"
        )
    moments = FlatMoments(vector(f, FIRST, n), vector(f, SECOND, n))
    check_moments(f, moments.second)
    return TrainState(identity, adapter, {}, {}, seed=0, **numbers, moments=moments)


def _check_ranks(f: GGUFFile, found: dict[str, Pair], ranks: dict[str, int]) -> None:
    for name, pair in found.items():
        known = slot_of(name)
        assert known is not None, "pairs() accepts only known names"
        slot = known[0]
        if pair.rank != ranks[slot.name]:
            stated = f"rank {pair.rank}, but key '{_RANK}{slot.tensor}' is {ranks[slot.name]}"
            raise f.error(f"tensor '{name}.lora_a'", stated)


def _model(f: GGUFFile, arch: str) -> dict[str, float]:
    """Return the base model's hyperparameters that are stored in the file."""
    model: dict[str, float] = {}
    for key in (*_REQUIRED, *_OPTIONAL):
        full = f"{arch}.{key}"
        if key in _REQUIRED or full in f.metadata:
            if MODEL_KEYS[key].name.startswith("FLOAT"):
                model[key] = f.get(full, "float")
            else:
                at_most = MAX_LAYERS if key == "block_count" else MAX_COUNT
                model[key] = f.count(full, at_most)
    return model


def _counters(f: GGUFFile) -> dict[str, Any]:
    version = f.count("training.file_version", 1 << 31)
    if version > 1:
        raise f.error("key 'training.file_version'", f"{version}; supported: 0 and 1")
    names = ("iteration", "sample", "token") + (("epoch",) if version else ())
    counts = {name: f.count(f"training.{name}_count", MOST) for name in names}
    f.count("training.iteration_count", MAX_ITERATION)
    rng_state = f.get(_SHUFFLE + "rng_state", "str", "")
    if rng_state:
        try:
            MT19937.parse(rng_state)
        except DataError as e:
            raise f.error(f"key '{_SHUFFLE}rng_state'", str(e)) from None
    n_samples = f.count(_SHUFFLE + "sample_count", MOST, default=0)
    next_sample = f.count(_SHUFFLE + "next_sample", MOST, default=0)
    if rng_state and not next_sample < n_samples:
        stated = f"{next_sample}, but there are {n_samples} samples"
        raise f.error(f"key '{_SHUFFLE}next_sample'", stated)
    return {
        "iteration": counts["iteration"],
        "sample_count": counts["sample"],
        "token_count": counts["token"],
        "epoch": counts.get("epoch", 0),
        "n_samples": n_samples,
        "next_sample": next_sample,
        "rng_state": rng_state,
    }


def _optimiser(f: GGUFFile) -> dict[str, Any]:
    if (version := f.count("optimizer.file_version", 1 << 31)) != 0:
        raise f.error("key 'optimizer.file_version'", f"{version}; supported: 0")
    if (kind := f.get("optimizer.type", "str")) != "adam":
        raise f.error(
            "key 'optimizer.type'", f"{shown(kind)}, but only adam checkpoints can be resumed"
        )
    n_past = f.count("optimizer.convergence_past_count", MAX_PAST)
    past = vector(f, PAST_LOSSES, n_past) if n_past else np.empty(0, np.float32)
    # The old tool ignores the best loss, the previous loss and the counter, but rejects wrong
    # types.
    f.count("optimizer.iteration_count", MOST)
    f.get("optimizer.just_initialized", "bool")
    return {
        "best_loss": f.get("optimizer.adam.best_loss", "float"),
        "previous_loss": f.get("optimizer.adam.previous_loss", "float"),
        "no_improvement": f.count("optimizer.adam.no_improvement_count", MAX_ITERATION),
        "past_losses": tuple(past.tolist()),
    }
