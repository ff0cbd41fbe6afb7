"""Read arrays by name from any kind of file: a dump, a model, a checkpoint or an adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from nbllama.adapter.file import read_stored
from nbllama.adapter.stored import Base
from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.legacy import is_old
from nbllama.errors import GGUFError, NotEnoughMemory, UsageError, shown
from nbllama.gguf_io import GGUFFile, open_gguf
from nbllama.peek.dump import Dump, is_dump, load
from nbllama.peek.names import Patterns
from nbllama.quants import QUANTS, decode
from nbllama.system.regular import first_bytes

MOST_BYTES = 8 << 30  # limit for the total size of one file's decoded tensors


def open_source(path: str, patterns: Sequence[str] = ()) -> Dump:
    """Read the tensors that match a pattern from the file `path`, and decode them to float32.

    For a checkpoint, the moments are also available, as `NAME.m` and `NAME.v`. Raises `UsageError`
    if the file does not exist or no name matches, `GGUFError` or `CheckpointError` for a file that
    cannot be read, and `NotEnoughMemory` if the decoded tensors would exceed 8 GB.
    """
    if not os.path.lexists(path):
        raise UsageError(f"{shown(path, 400)}: no such file")
    if is_dump(path):
        return load(path).matching(*patterns)
    gguf = None if os.path.isdir(path) else _gguf(path)
    if gguf is None:
        stored = read_stored(path, Base())
        halves: dict[str, np.ndarray] = {}
        for name, pair in stored.pairs.items():
            halves |= {f"{name}.lora_a": pair.a, f"{name}.lora_b": pair.b}
        return Dump(halves, {"adapter": path}).matching(*patterns)
    with gguf as f:
        if f.metadata.get("training.type") == "finetune_lora" or is_old(f.metadata):
            return _checkpoint(path).matching(*patterns)
        return _model(f, patterns)


def _gguf(path: str) -> GGUFFile | None:
    """Open a GGUF file; return None for an adapter, which `read_stored` reads."""
    try:
        f = open_gguf(path)
    except GGUFError:
        if os.path.isfile(path) and first_bytes(path, 4) == b"algg":  # a .bin adapter
            return None
        raise
    if f.metadata.get("general.type") == "adapter":
        f.close()
        return None
    return f


def _checkpoint(path: str) -> Dump:
    state = load_checkpoint(path)
    arrays = dict(state.adapter.parameters())
    for suffix, moments in ((".m", state.m), (".v", state.v)):
        arrays |= {name + suffix: x for name, x in moments.items()}
    return Dump(arrays, {"checkpoint": path, "iteration": state.iteration})


def _model(f: GGUFFile, patterns: Sequence[str]) -> Dump:
    fits = Patterns(patterns) if patterns else None
    if fits is not None and (unused := fits.unused(f.tensors)):
        raise UsageError(f"no array name matches {shown(unused[0])}")
    chosen = [t for t in f.tensors.values() if fits is None or fits(t.name)]
    nbytes = sum(4 * math.prod(t.shape) for t in chosen)
    if nbytes > MOST_BYTES:
        raise NotEnoughMemory(
            f"{shown(f.path, 400)}: the decoded weights would take {nbytes / 1e9:.1f} GB; "
            "select fewer with a PATTERN"
        )
    arrays: dict[str, np.ndarray] = {}
    for t in chosen:
        if t.type_id not in QUANTS:
            raise f.error(f"tensor '{shown(t.name)}'", "its type is not a weight type")
        arrays[t.name] = decode(t.type_id, f.data(t.name), math.prod(t.shape)).reshape(t.shape)
    return Dump(arrays, {"model": f.path})
