"""`look`, which detects the kind of a file and describes the file."""

from __future__ import annotations

import os

from nbllama.adapter.ggla import MAGIC_BYTES
from nbllama.checkpoint.legacy import is_old
from nbllama.errors import GGUFError, UsageError
from nbllama.gguf_io import GGUFFile, open_gguf
from nbllama.inspect.contents import adapter, checkpoint, model
from nbllama.inspect.found import Found, Key, stated
from nbllama.system.regular import first_bytes


def look(path: str, *, base: str = "", rank: int | None = None, check: bool = False) -> Found:
    """Describe a file, including the reason if it is refused.

    `base` is a GGUF model that a checkpoint or adapter must match. `rank` is the rank for counting
    the parameters of a model's pairs, or None for the default ranks. With `check`, every weight of
    a model is checked.

    Raises `UsageError` if the file does not exist, and `GGUFError` if nothing can be read from the
    file or if `base` is not a model.
    """
    if not os.path.lexists(path):
        raise UsageError(f"{path}: no such file")
    if os.path.isdir(path):
        size = sum(e.stat().st_size for e in os.scandir(path) if e.is_file())
        found = Found(path, size, "adapter", "PEFT folder")
        adapter(found, base)
        return found
    size = os.stat(path).st_size
    if os.path.isfile(path) and _magic(path) == MAGIC_BYTES:
        found = Found(path, size, "adapter", "ggla .bin from 2023")
        adapter(found, base)
        return found
    with open_gguf(path) as f:
        parts = f", in {len(f.paths)} files" if len(f.paths) > 1 else ""
        found = Found(path, f.size, kind_of(f), f"GGUF version {f.version}{parts}")
        found.metadata = [Key(k, _type_name(f, k, t.name), v) for k, v, t in f.entries()]
        if found.kind == "adapter":
            adapter(found, base)
        elif found.kind.startswith("checkpoint"):
            checkpoint(found, base)
        else:
            model(found, f, rank, check)
        if found.kind != "model":
            # the tensors in the header, even if the contents are refused
            found.tensors = found.tensors or [stated(f, name) for name in f.tensors]
    return found


def kind_of(f: GGUFFile) -> str:
    """Determine the kind of a GGUF file from its keys."""
    if f.metadata.get("general.type") == "adapter":
        return "adapter"
    if is_old(f.metadata):
        return "checkpoint of the old finetune"
    if f.metadata.get("training.type") == "finetune_lora":
        return "checkpoint"
    return "model"


def _type_name(f: GGUFFile, key: str, name: str) -> str:
    return f"{f.element_type(key).name.lower()}[]" if name == "ARRAY" else name.lower()


def _magic(path: str) -> bytes:
    try:
        return first_bytes(path, 4)
    except OSError as e:
        raise GGUFError(f"{path}: cannot be opened: {e.strerror or e}") from e
