"""The state of a training run in one GGUF file, written whole or not at all.

Keys, tensor names, tensor orientation and order are those of llama.cpp's `finetune`
(`finetune.cpp:save_checkpoint_lora_gguf`, `train.cpp:save_train_state_gguf`); what that program
did not store has keys of our own, `nbllama.*`. One of them is a sha256 over everything else in
the file, so a damaged file is known before anything of it is used. See docs/checkpoints.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

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
from nbllama.errors import CheckpointError, Diverged, GGUFError, OutputError, UsageError, shown
from nbllama.gguf_io import GGUFFile, ValueType, open_gguf, write_gguf
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import EVERY_SLOT, FUSED_SLOTS, SLOTS
from nbllama.opt.arrays import check_finite

VERSION = 1
PLACEHOLDER, LATEST = "ITERATION", "LATEST"
SHA_KEY = "nbllama.sha256"
_RANK, _SETTING, _ENVIRONMENT = "training.lora.rank.", "nbllama.settings.", "nbllama.environment."
_WATCH = "nbllama.validation."
_COUNTERS = (
    ("iteration", "training.iteration_count", ValueType.UINT64),
    ("sample_count", "training.sample_count", ValueType.UINT64),
    ("token_count", "training.token_count", ValueType.UINT64),
    ("epoch", "training.epoch_count", ValueType.UINT64),
    ("n_samples", "training.shuffle.sample_count", ValueType.UINT64),
    ("next_sample", "training.shuffle.next_sample", ValueType.UINT64),
    ("no_improvement", "optimizer.adam.no_improvement_count", ValueType.UINT32),
    ("seed", "nbllama.seed", ValueType.UINT64),
)
_LOSSES = (
    ("best_loss", "optimizer.adam.best_loss"),
    ("previous_loss", "optimizer.adam.previous_loss"),
)
_SETTING_TYPES = {
    bool: ValueType.BOOL,
    int: ValueType.INT64,
    float: ValueType.FLOAT64,
    str: ValueType.STRING,
}
Path = str | os.PathLike[str]


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write `state` to `path` in one atomic step; takes memory for one more copy of the state.

    Raises `OutputError` if the path cannot be written, `Diverged` if the state holds a NaN or an
    infinity (what is at `path` stays).
    """
    params = state.adapter.parameters()
    for arrays in (params, state.m, state.v):
        if bad := check_finite(arrays):
            raise Diverged(f"{shown(path, 400)}: not saved: {bad} or its moments are not finite")
    tensors = [(name, legacy(name, x)) for name, x in params.items()]
    for name, moments in ((FIRST, state.m), (SECOND, state.v)):
        if not moments:
            continue  # an optimiser without them
        flat = [legacy(p, moments[p]).reshape(-1) for p in params]
        tensors.append((name, np.concatenate(flat)))
    if state.past_losses:
        tensors.append((PAST_LOSSES, np.array(state.past_losses, np.float32)))
    entries = list(_entries(state))
    sha = digest(entries, ((name, x.shape, x) for name, x in tensors))
    write_gguf(path, [*entries, (SHA_KEY, sha, ValueType.STRING)], tensors)


def _entries(state: TrainState) -> Iterator[tuple[str, Any, ValueType]]:
    u32, u64, text = ValueType.UINT32, ValueType.UINT64, ValueType.STRING
    same, adapter = state.identity, state.adapter
    yield "training.type", "finetune_lora", text
    yield "general.architecture", adapter.arch, text
    yield "general.file_type", 0, u32
    if "ctx" in same.settings:
        yield f"{adapter.arch}.context_length", same.settings["ctx"], u32
    for key, value in same.model.items():
        yield f"{adapter.arch}.{key}", value, MODEL_KEYS[key]
    for slot in EVERY_SLOT:
        rank = same.ranks.get(slot.name, 0)
        if rank or slot in SLOTS:
            yield _RANK + slot.tensor, rank, u32
    yield "training.file_version", 1, u32
    for name, key, kind in _COUNTERS:
        yield key, getattr(state, name), kind
    if state.rng_state:
        yield "training.shuffle.rng_state", state.rng_state, text
    yield "training.shuffle.samples_hash", int(same.data[:16] or "0", 16), u64
    yield "optimizer.file_version", 0, u32
    yield "optimizer.convergence_past_count", len(state.past_losses), u32
    yield "optimizer.parameter_count", adapter.n_parameters, u64
    yield "optimizer.iteration_count", state.iteration, u32
    yield "optimizer.just_initialized", False, ValueType.BOOL
    yield "optimizer.type", "adam" if state.v else "first", text
    for name, key in _LOSSES:
        yield key, getattr(state, name), ValueType.FLOAT32
    yield "nbllama.checkpoint_version", VERSION, u32
    yield "nbllama.lora_r", adapter.lora_r, u32
    yield "nbllama.lora_alpha", adapter.alpha, ValueType.FLOAT64
    yield "nbllama.base", same.base, text
    yield "nbllama.data", same.data, text
    yield "nbllama.moment_order", list(adapter.parameters()), ValueType.ARRAY
    for name, setting in same.settings.items():
        yield _SETTING + name, setting, _SETTING_TYPES[type(setting)]
    for name, number in state.watch.items():
        yield _WATCH + name, number, ValueType.FLOAT64
    for name, text_value in state.environment.items():
        yield _ENVIRONMENT + name, text_value, text


def load_checkpoint(path: Path) -> TrainState:
    """Read a checkpoint: of this program, of which nothing is used before its sha256 was found
    right, or of llama.cpp's `finetune` (`old_checkpoint`).

    Raises `FileNotFoundError` if there is no such file, `CheckpointError` for a file that is
    damaged, is not a checkpoint, or holds what cannot be.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(os.fspath(path))
    try:
        with open_gguf(path) as f:
            if is_old(f):
                state = read_old(f)
            else:
                _verify(f)
                state = _read(f)
            f.recheck()
            return state
    except GGUFError as e:
        raise CheckpointError(f"{e}; the checkpoint cannot be used") from e


def _verify(f: GGUFFile) -> None:
    """Prove that `f` is a checkpoint of this program and as it was written."""
    if f.metadata.get("general.type") == "adapter":
        raise f.error("file", "an adapter, not a checkpoint")
    if f.metadata.get("training.type") != "finetune_lora":
        raise f.error("file", "not a checkpoint of a LoRA run")
    if (version := f.get("nbllama.checkpoint_version", "uint")) > VERSION:
        raise f.error("file", f"of format {version}, by a newer nbllama; known is {VERSION}")
    entries = [entry for entry in f.entries() if entry[0] != SHA_KEY]
    tensors = ((t.name, t.shape, f.data(t.name)) for t in f.tensors.values())
    if f.get(SHA_KEY, "str") != digest(entries, tensors) or f.version != 3 or not _clean(f):
        raise f.error("file", "damaged: its contents do not have the sha256 that it states")


def _clean(f: GGUFFile) -> bool:
    """Whether the padding after each tensor, which belongs to nothing, is zero."""
    with open(f.path, "rb") as file:
        for t in f.tensors.values():
            file.seek(t.offset + t.nbytes)
            if any(file.read(-t.nbytes % f.alignment)):
                return False
    return True


def _read(f: GGUFFile) -> TrainState:
    arch = f.get("general.architecture", "str")
    lora_r, alpha = f.get("nbllama.lora_r", "uint"), f.get("nbllama.lora_alpha", "float")
    if lora_r < 1 or not 0 < alpha < np.inf:
        raise f.error("keys 'nbllama.lora_r' and '.lora_alpha'", f"{lora_r} and {alpha}")
    others = (FIRST, SECOND, PAST_LOSSES)
    stored = {name: array(f, name) for name in f.tensors if name not in others}
    adapter = Adapter(arch, alpha, lora_r, pairs(f, stored))
    identity = Identity(
        arch,
        lora_r,
        alpha,
        {slot.name: f.get(_RANK + slot.tensor, "uint") for slot in SLOTS}
        | {slot.name: f.get(_RANK + slot.tensor, "uint", 0) for slot in FUSED_SLOTS},
        f.get("nbllama.base", "str"),
        f.get("nbllama.data", "str"),
        {k: v for k, v in _group(f, f"{arch}.").items() if k in MODEL_KEYS},
        _group(f, _SETTING),
    )
    # sgd and lion have no second moments; the settings say which of them it was
    kind = f.get("optimizer.type", "str")
    if kind not in ("adam", "first"):
        raise f.error("key 'optimizer.type'", shown(kind))
    m = _moments(f, FIRST, adapter)
    v = _moments(f, SECOND, adapter) if kind == "adam" else {}
    for x in v.values():
        check_moments(f, x)
    n_past = f.get("optimizer.convergence_past_count", "uint")
    past = vector(f, PAST_LOSSES, n_past) if n_past else np.empty(0, np.float32)
    numbers: dict[str, Any] = {name: f.get(key, "uint") for name, key, _ in _COUNTERS}
    numbers |= {name: f.get(key, "float") for name, key in _LOSSES}
    written = {name: str(value) for name, value in _group(f, _ENVIRONMENT).items()}
    return TrainState(
        identity,
        adapter,
        m,
        v,
        **numbers,
        environment=written,
        rng_state=f.get("training.shuffle.rng_state", "str", ""),
        past_losses=tuple(past.tolist()),
        watch={k: float(v) for k, v in _group(f, _WATCH).items()},
    )


def _group(f: GGUFFile, prefix: str) -> dict[str, Any]:
    """The single values under a common prefix, by the rest of their keys."""
    return {
        key.removeprefix(prefix): value
        for key, value in f.metadata.items()
        if key.startswith(prefix) and isinstance(value, bool | int | float | str)
    }


def _moments(f: GGUFFile, name: str, adapter: Adapter) -> dict[str, np.ndarray]:
    """A flat moment vector as arrays by parameter name, in our orientation."""
    order = list(f.get("nbllama.moment_order", "strings"))
    if sorted(order) != sorted(adapter.parameters()):
        raise f.error("key 'nbllama.moment_order'", "does not list the tensors of the file")
    return split(vector(f, name, adapter.n_parameters), order, adapter)


def output_name(pattern: str, stamp: int | str, mark: str = PLACEHOLDER) -> str:
    """`pattern` with its first `mark` replaced by an iteration number, or by what stands for the
    newest file.
    """
    return pattern.replace(mark, str(stamp), 1)


def prune(pattern: str, keep_last: int, iteration: int, mark: str = PLACEHOLDER) -> list[str]:
    """Remove numbered checkpoints of `pattern`, all but the newest `keep_last` (0: keep all).

    Looks at numbers up to `iteration` (later ones are not from this run's past) and counts and
    removes only whole, valid checkpoints; LATEST is never touched. Returns the removed names.

    Raises `UsageError` if `mark` stands in the folder's name, `OutputError` if a file cannot
    be removed.
    """
    folder, base = os.path.split(pattern)
    if mark in folder and keep_last:
        raise UsageError(f"--keep-last needs {mark} in the file's name, not in a folder's")
    before, found, after = base.partition(mark)
    if not keep_last or not found:
        return []
    shape = re.compile(rf"{re.escape(before)}(0|[1-9][0-9]{{0,18}}){re.escape(after)}")
    matches = [m for m in map(shape.fullmatch, os.listdir(folder or os.curdir)) if m]
    numbers = sorted((n for m in matches if (n := int(m[1])) <= iteration), reverse=True)
    valid, removed = 0, []
    for number in numbers:
        name = output_name(pattern, number, mark)
        try:
            with open_gguf(name) as f:
                _verify(f)
        except GGUFError:
            continue
        valid += 1
        if valid > keep_last:
            try:
                os.unlink(name)
            except OSError as e:
                raise OutputError(f"{shown(name, 400)}: cannot be removed: {e.strerror}") from e
            removed.append(name)
    return removed
