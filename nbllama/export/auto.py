"""`--outtype auto`: choose the smallest weight types that keep the effect of each pair.

The effect of a pair is its contribution to the layer's outputs, squared and summed over the
sample. The lost effect is the same sum for the rounding error. Both sums are quadratic in the
change of the weights, as is the KL divergence of the model's output for small changes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np

from nbllama.export.calibrated import Rounder
from nbllama.export.rewrite import IDS
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.types import TENSOR_TYPES
from nbllama.lora.pairs import Adapter
from nbllama.quants import decode, nbytes

KEEP = 0.95  # share of the effect to keep
_LADDER = ("Q2_K", "Q3_K", "Q4_K", "Q4_0", "Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0")
"""Types in ascending order of bits per weight. K types come first in a tie."""


class Plan(NamedTuple):
    """The chosen types.

    `types` contains the type id of each matrix with a pair, `nbytes` is the size of all tensors of
    the model, and `kept` is the share of the effect that is not lost.
    """

    types: dict[str, int]
    nbytes: int
    kept: float

    def line(self) -> str:
        """Describe the plan in one line."""
        counts = Counter(self.types.values())
        names = ", ".join(f"{n} {TENSOR_TYPES[t].name}" for t, n in sorted(counts.items()))
        size = f"{self.nbytes / 2**20:.2f} MiB"
        kept = f"{self.kept:.1%} of the effect on layer outputs is kept"
        return f"auto: {names}; {size} in total; {kept}"


class Spool:
    """A `rewrite.Whole` that stores encoded tensors in a temporary file until they are written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int, int]] = {}

    def put(self, name: str, type_id: int, raw: np.ndarray) -> None:
        """Store the bytes of a tensor."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(raw.tobytes())
        self._places[name] = (type_id, place, raw.size)

    def takes(self, name: str, type_id: int) -> bool:
        """Return whether the spool contains the tensor, encoded as this type."""
        return name in self._places and self._places[name][0] == type_id

    def round(self, name: str, type_id: int, w: np.ndarray, base: np.ndarray | None) -> np.ndarray:
        """Return the stored bytes."""
        _, place, size = self._places[name]
        self._file.seek(place)
        return np.frombuffer(self._file.read(size), np.uint8)


@contextmanager
def spool_beside(path: str | os.PathLike[str]) -> Iterator[Spool]:
    """Open a spool on the same disk as `path`, and remove the spool after the `with` block."""
    with TemporaryFile(dir=os.path.dirname(os.path.abspath(path))) as file:
        yield Spool(file)


def plan(
    f: GGUFFile,
    adapter: Adapter,
    rounder: Rounder,
    spool: Spool,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Plan:
    """Choose a type for every block matrix with a pair, and store the encoded matrices in `spool`.

    Raises GGUFError for weights that cannot be encoded.
    """
    types: dict[str, int] = {}
    effects = losses = 0.0
    size = sum(info.nbytes for info in f.tensors.values())
    names = [name for name in adapter.pairs if rounder.takes(name, IDS["Q8_0"])]
    names.sort(key=lambda name: int(name.split(".")[1]))
    for i, name in enumerate(names):
        progress(i, len(names), name)
        info, pair = f.tensors[name], adapter.pairs[name]
        raw = f.data(name)
        w = decode(info.type_id, raw, info.shape[0] * info.shape[1]).reshape(info.shape)
        w += np.float32(adapter.scale) * (pair.b @ pair.a)
        effect = rounder.effect(name, pair, adapter.scale)
        lost = np.inf
        for type_id in _candidates(info.type_id, info.shape[-1]):
            try:
                made = rounder.encode(name, type_id, w, raw if type_id == info.type_id else None)
            except ValueError as e:
                raise f.error(f"tensor '{name}'", str(e)) from e
            lost = made.cost
            if lost <= (1 - KEEP) * effect:
                types[name] = type_id
                spool.put(name, type_id, made.raw)
                break
        else:
            types[name], lost = IDS["F16"], 0.0
        effects, losses = effects + effect, losses + lost
        size += nbytes(types[name], w.size) - info.nbytes
    return Plan(types, size, 1 - losses / effects if effects else 1.0)


def _candidates(own: int, row: int) -> list[int]:
    """Return the ids of types for rows of `row` weights, in ascending order of bits per weight.

    Among types of equal size, `own` comes first.
    """
    known = [TENSOR_TYPES[IDS[name]] for name in _LADDER]
    fit = [t for t in known if row % t.block_size == 0]
    return [t.id for t in sorted(fit, key=lambda t: (t.type_size / t.block_size, t.id != own))]
