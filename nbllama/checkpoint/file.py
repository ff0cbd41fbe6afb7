"""The state of a training run as a single GGUF file, written atomically.

Keys, tensor names, tensor orientation and order follow llama.cpp's `finetune`
(`finetune.cpp:save_checkpoint_lora_gguf`, `train.cpp:save_train_state_gguf`). Values that
`finetune` did not store have `nbllama.*` keys. One of them is the sha256 of the rest of the file,
which is checked before any other value is used. See docs/checkpoints.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from nbllama.checkpoint import stored
from nbllama.checkpoint.identity import MODEL_KEYS, Identity, digest
from nbllama.checkpoint.legacy import is_old, read_old
from nbllama.checkpoint.state import (
    FIRST,
    PAST_LOSSES,
    SECOND,
    TrainState,
    array,
    check_moments,
    legacy,
    pairs,
    split,
    vector,
)
from nbllama.checkpoint.stored import ALPHAS, MAX_PAST, MAX_RANK, Entry
from nbllama.errors import CheckpointError, Diverged, GGUFError, shown
from nbllama.gguf_io import GGUFFile, ValueType, open_gguf, write_gguf
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import EVERY_SLOT, SLOTS
from nbllama.opt.arrays import check_finite

VERSION = 1
SHA_KEY = "nbllama.sha256"
_RANK = "training.lora.rank."
Path = str | os.PathLike[str]


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write `state` to `path` atomically.

    This needs enough memory for a second copy of the state.

    Raises `OutputError` if the file cannot be written, and `Diverged` if the state contains a NaN
    or an infinity. In both cases, an existing file at `path` is left unchanged.
    """
    params = state.adapter.parameters()
    for arrays in (params, state.m, state.v):
        if bad := check_finite(arrays):
            raise Diverged(f"{shown(path, 400)}: not saved: {bad} or its moments are not finite")
    tensors = [(name, legacy(name, x)) for name, x in params.items()]
    for name, moments in ((FIRST, state.m), (SECOND, state.v)):
        if not moments:
            continue  # the optimiser does not use these moments
        flat = [legacy(p, moments[p]).reshape(-1) for p in params]
        tensors.append((name, np.concatenate(flat)))
    if state.past_losses:
        tensors.append((PAST_LOSSES, np.array(state.past_losses, np.float32)))
    entries = list(_entries(state))
    sha = digest(entries, ((name, x.shape, x) for name, x in tensors))
    write_gguf(path, [*entries, (SHA_KEY, sha, ValueType.STRING)], tensors)


def _entries(state: TrainState) -> Iterator[Entry]:
    """Yield all entries except for the digest, in the order in which they are written."""
    u32, u64, text = ValueType.UINT32, ValueType.UINT64, ValueType.STRING
    same, adapter = state.identity, state.adapter
    yield "training.type", "finetune_lora", text
    yield "general.file_type", 0, u32
    if "ctx" in same.settings:
        yield f"{same.arch}.context_length", same.settings["ctx"], u32
    for name, value in same.model.items():
        yield f"{same.arch}.{name}", value, MODEL_KEYS[name]
    for slot in EVERY_SLOT:
        rank = same.ranks.get(slot.name, 0)
        if rank or slot in SLOTS:
            yield _RANK + slot.tensor, rank, u32
    yield "training.file_version", 1, u32
    yield "training.shuffle.samples_hash", int(same.data[:16] or "0", 16), u64
    yield "optimizer.file_version", 0, u32
    yield "optimizer.convergence_past_count", len(state.past_losses), u32
    yield "optimizer.parameter_count", adapter.n_parameters, u64
    yield "optimizer.iteration_count", state.iteration, u32
    yield "optimizer.just_initialized", False, ValueType.BOOL
    yield "optimizer.type", "adam" if state.v else "first", text
    yield "nbllama.checkpoint_version", VERSION, u32
    yield "nbllama.moment_order", list(adapter.parameters()), ValueType.ARRAY
    yield from stored.entries(same)
    yield from stored.entries(state)


def load_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint written by this program (verifying its sha256) or by the old `finetune`.

    Raises `FileNotFoundError` if the file does not exist. Raises `CheckpointError` if it is
    damaged, is not a checkpoint, or contains impossible values.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(os.fspath(path))
    try:
        with open_gguf(path) as f:
            if is_old(f.metadata):
                state = read_old(f)
            else:
                verify(f)
                state = _read(f)
            f.recheck()
            return state
    except GGUFError as e:
        raise CheckpointError(f"{e}; the checkpoint cannot be used") from e


def verify(f: GGUFFile) -> None:
    """Raise `GGUFError` unless `f` is an unmodified checkpoint written by this program."""
    if f.metadata.get("general.type") == "adapter":
        raise f.error("file", "an adapter, not a checkpoint")
    if f.metadata.get("training.type") != "finetune_lora":
        raise f.error("file", "not a checkpoint of a LoRA run")
    if (version := f.count("nbllama.checkpoint_version", 1 << 31)) > VERSION:
        raise f.error(
            "file", f"written by a newer nbllama in format {version}; this version reads {VERSION}"
        )
    entries = [entry for entry in f.entries() if entry[0] != SHA_KEY]
    tensors = ((t.name, t.shape, f.data(t.name)) for t in f.tensors.values())
    if f.get(SHA_KEY, "str") != digest(entries, tensors) or f.version != 3 or not _clean(f):
        raise f.error("file", "damaged: its contents do not match the stored sha256")


def _clean(f: GGUFFile) -> bool:
    """Return whether the padding after every tensor, which no digest covers, is zero."""
    with open(f.path, "rb") as file:
        for t in f.tensors.values():
            file.seek(t.offset + t.nbytes)
            if any(file.read(-t.nbytes % f.alignment)):
                return False
    return True


def _read(f: GGUFFile) -> TrainState:
    found = stored.values(f, Identity)
    arch, lora_r, alpha = found["arch"], found["lora_r"], found["lora_alpha"]
    if lora_r < 1 or not ALPHAS[0] < alpha < ALPHAS[1]:
        raise f.error("keys 'nbllama.lora_r' and '.lora_alpha'", f"bad values {lora_r}, {alpha}")
    others = (FIRST, SECOND, PAST_LOSSES)
    tensors = {name: array(f, name) for name in f.tensors if name not in others}
    adapter = Adapter(arch, alpha, lora_r, pairs(f, tensors))
    ranks = {slot.name: f.count(_RANK + slot.tensor, MAX_RANK) for slot in SLOTS}
    more = [slot for slot in EVERY_SLOT if slot not in SLOTS]
    ranks |= {slot.name: f.count(_RANK + slot.tensor, MAX_RANK, default=0) for slot in more}
    model = {k: v for k, v in stored.items(f, f"{arch}.").items() if k in MODEL_KEYS}
    # sgd and lion have no second moments; the settings contain the name of the optimiser
    kind = f.get("optimizer.type", "str")
    if kind not in ("adam", "first"):
        raise f.error("key 'optimizer.type'", f"'{shown(kind)}', but must be adam or first")
    m = _moments(f, FIRST, adapter)
    v = _moments(f, SECOND, adapter) if kind == "adam" else {}
    for x in v.values():
        check_moments(f, x)
    n_past = f.count("optimizer.convergence_past_count", MAX_PAST)
    past = vector(f, PAST_LOSSES, n_past) if n_past else np.empty(0, np.float32)
    identity = Identity(ranks=ranks, model=model, **found)
    numbers = stored.values(f, TrainState)
    return TrainState(identity, adapter, m, v, past_losses=tuple(past.tolist()), **numbers)


def _moments(f: GGUFFile, name: str, adapter: Adapter) -> dict[str, np.ndarray]:
    """Read a flat moment vector as one array per parameter, in this program's orientation."""
    order = list(f.get("nbllama.moment_order", "strings"))
    if sorted(order) != sorted(adapter.parameters()):
        raise f.error("key 'nbllama.moment_order'", "does not list the tensors in the file")
    return split(vector(f, name, adapter.n_parameters), order, adapter)
