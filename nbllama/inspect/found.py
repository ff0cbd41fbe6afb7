"""What `look` finds in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nbllama.errors import GGUFError, NbllamaError, UsageError
from nbllama.formats.ggla import MAGIC_BYTES
from nbllama.gguf_io import GGUFFile, open_gguf
from nbllama.old_checkpoint import is_old


class Key(NamedTuple):
    """A metadata value with the name of its type; arrays are `StringArray` or numpy."""

    name: str
    type: str
    value: object


class TensorRow(NamedTuple):
    """A tensor of the file: shape in numpy order, and what a trainer does with it."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    use: str


class Target(NamedTuple):
    """One kind of tensor that carries LoRA pairs, or can.

    `parameters` by the header of a column; 0: no pair. `ranks`: the same for the ranks.
    """

    option: str  # `--rank-NAME` of nbllama.finetune
    tensor: str  # GGUF name without block number and ".weight"
    tensors: int
    shapes: tuple[tuple[int, ...], ...]  # of the base tensors, (n_out, n_in)
    ranks: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, int]


@dataclass
class Found:
    """All that is known of a file; `refused` says why it cannot be used, None if it can."""

    path: str
    size: int  # bytes, of a folder those of the files that were read
    kind: str  # "model", "checkpoint", "checkpoint of the old finetune", "adapter", "unknown"
    format: str
    facts: dict[str, str | int | float] = field(default_factory=dict)
    metadata: list[Key] = field(default_factory=list)
    tensors: list[TensorRow] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: NbllamaError | None = None


def look(path: str, *, base: str = "", rank: int | None = None, check: bool = False) -> Found:
    """Everything about a file; reasons to refuse it are in the result.

    `base`: a GGUF model that a checkpoint or adapter must fit. `rank`: that parameters of a model's
    pairs are counted for, None for the defaults. `check`: look at every weight of a model.

    Raises `UsageError` where there is no file, `GGUFError` for one of which nothing can be read,
    and for a `base` that is no model.
    """
    from nbllama.inspect.contents import adapter, checkpoint, model

    if not os.path.lexists(path):
        raise UsageError(f"{path}: there is no such file")
    if os.path.isdir(path):
        size = sum(e.stat().st_size for e in os.scandir(path) if e.is_file())
        found = Found(path, size, "adapter", "PEFT folder")
        adapter(found, base)
        return found
    size = os.stat(path).st_size
    if os.path.isfile(path) and _magic(path) == MAGIC_BYTES:
        found = Found(path, size, "adapter", "ggla .bin of 2023")
        adapter(found, base)
        return found
    with open_gguf(path) as f:
        found = Found(path, size, kind_of(f), f"GGUF version {f.version}")
        found.metadata = [Key(k, _type_name(f, k, t.name), v) for k, v, t in f.entries()]
        if found.kind == "adapter":
            adapter(found, base)
        elif found.kind.startswith("checkpoint"):
            checkpoint(found, base)
        else:
            model(found, f, rank, check)
        if found.kind != "model":
            # what the file states, also where its contents are refused
            found.tensors = found.tensors or [stated(f, name) for name in f.tensors]
    return found


def kind_of(f: GGUFFile) -> str:
    """What a GGUF file says that it is."""
    if f.metadata.get("general.type") == "adapter":
        return "adapter"
    if is_old(f):
        return "checkpoint of the old finetune"
    if f.metadata.get("training.type") == "finetune_lora":
        return "checkpoint"
    return "model"


def stated(f: GGUFFile, name: str, use: str = "") -> TensorRow:
    """A tensor as the header states it."""
    from nbllama.gguf_io import TENSOR_TYPES

    t = f.tensors[name]
    return TensorRow(name, TENSOR_TYPES[t.type_id].name, t.shape, t.nbytes, use)


def _type_name(f: GGUFFile, key: str, name: str) -> str:
    return f"{f.element_type(key).name.lower()}[]" if name == "ARRAY" else name.lower()


def _magic(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4)
    except OSError as e:
        raise GGUFError(f"{path}: cannot be opened: {e.strerror or e}") from e
