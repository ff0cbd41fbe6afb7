"""The classes that describe the contents of a file: `Found`, and the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nbllama.errors import NbllamaError
from nbllama.gguf_io import TENSOR_TYPES, GGUFFile


class Key(NamedTuple):
    """A metadata entry; arrays are stored as `StringArray` or numpy arrays."""

    name: str
    type: str
    value: object


class TensorRow(NamedTuple):
    """A tensor in the file: its shape in numpy order, and its use in training."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    use: str


class Target(NamedTuple):
    """One kind of tensor that has LoRA pairs or can have them.

    `parameters` and `ranks` are keyed by column header; the number of parameters is 0 if there is
    no pair.
    """

    option: str  # `--rank-NAME` of nbllama.finetune
    tensor: str  # GGUF name without block number and ".weight"
    tensors: int
    shapes: tuple[tuple[int, ...], ...]  # of the base tensors, (n_out, n_in)
    ranks: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, int]


@dataclass
class Found:
    """Information about a file; `refused` says why the file cannot be used, or is None."""

    path: str
    size: int  # bytes; for a folder, the sum of its files
    kind: str  # "model", "checkpoint", "checkpoint of the old finetune", "adapter", "unknown"
    format: str
    facts: dict[str, str | int | float] = field(default_factory=dict)
    metadata: list[Key] = field(default_factory=list)
    tensors: list[TensorRow] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: NbllamaError | None = None


def stated(f: GGUFFile, name: str, use: str = "") -> TensorRow:
    """Return the table row for a tensor, based on the file header."""
    t = f.tensors[name]
    return TensorRow(name, TENSOR_TYPES[t.type_id].name, t.shape, t.nbytes, use)
