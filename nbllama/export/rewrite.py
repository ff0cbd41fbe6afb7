"""Rewrite a model piece by piece, with different weight types or merged adapters.

Only a few rows of a tensor are in memory at a time, as float32. They are decoded, the deltas of the
adapters are added, and the sums are encoded. The result is decoded again to measure the encoding
error. Tensors whose type and values do not change are copied byte for byte.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nbllama.export.file_types import may_change
from nbllama.gguf_io import GGUFFile, RawTensor, ValueType, write_gguf
from nbllama.gguf_io.file import TensorInfo
from nbllama.gguf_io.types import TENSOR_TYPES
from nbllama.lora.pairs import Pair
from nbllama.quants import QUANTS, decode, nbytes
from nbllama.quants.encode import QUANTISED, quantise

PIECE = 1 << 21
"""Number of weights decoded at a time (at least one row): 8 MB of float32."""


class Whole(Protocol):
    """An encoder that requires whole tensors instead of a few rows at a time (`export.calibrated`).

    Its tensors are encoded block by block, in ascending order.
    """

    def takes(self, name: str, type_id: int) -> bool:
        """Return whether this object encodes the tensor as this type."""
        ...

    def round(self, name: str, type_id: int, w: np.ndarray, base: np.ndarray | None) -> np.ndarray:
        """Encode w (float32 `[R, n]`) as uint8 `[nbytes]`.

        `base` contains the tensor's bytes in the input file, if the type does not change. Raises
        ValueError for weights that cannot be encoded.
        """
        ...


Deltas = Mapping[str, Sequence[tuple[float, Pair]]]
IDS = {t.name: t.id for t in TENSOR_TYPES.values()}
_IN_BLOCK = re.compile(r"blk\.([0-9]{1,7})\.")
_WIDER = ("Q2_K", "Q3_K", "Q4_K", "Q4_0", "Q5_K", "Q5_0", "Q6_K", "Q8_0", "F16")
_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass
class Change:
    """Sums over all tensors with the same old type and the same new type.

    `squares` and `errors` are the sums of the squared weights and of the squared encoding errors.
    """

    tensors: int = 0
    weights: int = 0
    squares: float = 0.0
    errors: float = 0.0
    bytes: int = 0

    @property
    def rmse(self) -> float:
        """The root mean square of the difference between encoded and merged weights."""
        return math.sqrt(self.errors / self.weights)

    @property
    def relative(self) -> float:
        """`rmse` as a fraction of the weights' root mean square, or 0 if all weights are zero."""
        return math.sqrt(self.errors / self.squares) if self.squares else 0.0


Changes = dict[tuple[str, str], Change]


def writable_type(type_id: int, row: int) -> int:
    """Return the type itself if it can be written, otherwise the next wider type that can.

    Among equally wide types, the K type is preferred if a row of `row` weights consists of whole
    blocks of this type.
    """
    t = TENSOR_TYPES[type_id]
    if t.name in QUANTISED:
        return type_id
    own = t.type_size / t.block_size
    for name in _WIDER:
        wider = TENSOR_TYPES[IDS[name]]
        if wider.type_size / wider.block_size > own and row % wider.block_size == 0:
            return wider.id
    return IDS["F32"]


def metadata_for(f: GGUFFile, file_type: int | None) -> list[tuple[str, object, ValueType]]:
    """Return all keys of `f`, with a new `general.file_type` unless `file_type` is None."""
    entries = list(f.entries())
    if file_type is None:
        return entries
    set_to = {
        "general.file_type": file_type,
        "general.quantization_version": _QUANTISATION_VERSION,
    }
    kept = [entry for entry in entries if entry[0] not in set_to]
    return kept + [(key, value, ValueType.UINT32) for key, value in set_to.items()]


def rewrite(
    f: GGUFFile,
    path: str | os.PathLike[str],
    types: Mapping[str, int],
    deltas: Deltas,
    *,
    metadata: Iterable[tuple[str, object, int]],
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    whole: Whole | None = None,
) -> Changes:
    """Write the tensors of `f` to `path` atomically (see `nbllama.system.files`).

    `types` maps tensor names to new type ids; other tensors keep their types. `deltas` maps tensor
    names to values to add: (scale, pair) adds scale * B A. `progress(done, total, name)` is called
    before each tensor. `whole` encodes the tensors for which its `takes` returns True. Returns a
    `Change` for each (old type, new type).

    Raises GGUFError for weights that are not finite or do not fit their new type, and if `f`
    changes during writing. Raises `OutputError` if the path cannot be written. Raises ValueError
    for a type that cannot be written and for a delta without a tensor.
    """
    if missing := set(deltas) - set(f.tensors):
        raise ValueError(f"deltas for tensors that the model does not have: {sorted(missing)}")
    changes: Changes = {}

    def body(index: int, info: TensorInfo, new: int) -> Callable[[], Iterator[np.ndarray]]:
        def pieces() -> Iterator[np.ndarray]:
            progress(index, len(f.tensors), info.name)
            key = TENSOR_TYPES[info.type_id].name, TENSOR_TYPES[new].name
            change = changes.setdefault(key, Change())
            yield from _pieces(f, info, new, deltas.get(info.name, ()), change, whole)
            change.tensors += 1
            f.recheck()

        return pieces

    tensors = []
    infos = list(f.tensors.values())
    if whole is not None:
        infos.sort(key=lambda info: _block(info.name))
    for i, info in enumerate(infos):
        new = types.get(info.name, info.type_id)
        tensors.append((info.name, RawTensor(info.shape, new, body(i, info, new))))
    write_gguf(path, metadata, tensors)
    return changes


def _block(name: str) -> int:
    """Return the number of the block that a tensor belongs to, or -1 if it is not in a block."""
    found = _IN_BLOCK.match(name)
    return int(found[1]) if found else -1


def _pieces(
    f: GGUFFile,
    info: TensorInfo,
    new: int,
    deltas: Sequence[tuple[float, Pair]],
    change: Change,
    whole: Whole | None,
) -> Iterator[np.ndarray]:
    """Yield the tensor's new bytes, and update the sums in `change`."""
    raw, row = f.data(info.name), info.shape[-1]
    if new == info.type_id and not deltas:
        change.bytes += info.nbytes
        for start in range(0, info.nbytes, 4 * PIECE):
            yield raw[start : start + 4 * PIECE]
        if info.type_id in QUANTS:
            change.weights += math.prod(info.shape)
        return
    n_rows, row_bytes = math.prod(info.shape) // row, nbytes(info.type_id, row)
    step = max(1, PIECE // row)
    if whole is not None and whole.takes(info.name, new):
        step = n_rows
    else:
        whole = None
    for start in range(0, n_rows, step):
        n = min(step, n_rows - start)
        x = decode(info.type_id, raw[start * row_bytes : (start + n) * row_bytes], n * row)
        x = x.reshape(n, row)
        with np.errstate(over="ignore", invalid="ignore"):
            for scale, pair in deltas:
                _add_rows(x, start, pair, scale)
        try:
            if whole is None:
                out = quantise(new, x)
            else:
                out = whole.round(info.name, new, x, raw if new == info.type_id else None)
        except ValueError as e:
            raise f.error(f"tensor '{info.name}'", str(e)) from e
        flat = x.reshape(-1)
        with np.errstate(over="ignore"):  # the squares can overflow even if the weights are finite
            change.squares += float(np.dot(flat, flat))
            flat -= decode(new, out, flat.size)
            change.errors += float(np.dot(flat, flat))
        change.weights += flat.size
        change.bytes += out.size
        yield out


def _add_rows(x: np.ndarray, start: int, pair: Pair, scale: float) -> None:
    """Add the pair's contribution to x `[n, n_in]`, which contains the rows starting at `start`.

    In a tensor with experts, rows are numbered across all experts.
    """
    if pair.a.ndim == 2:
        x += np.float32(scale) * (pair.b[start : start + len(x)] @ pair.a)
        return
    n_out = pair.b.shape[1]
    for expert in range(start // n_out, -(-(start + len(x)) // n_out)):
        first, end = max(start, expert * n_out), min(start + len(x), (expert + 1) * n_out)
        b = pair.b[expert, first - expert * n_out : end - expert * n_out]
        x[first - start : end - start] += np.float32(scale) * (b @ pair.a[expert])


def kept_types(f: GGUFFile, deltas: Deltas) -> tuple[dict[str, int], list[str]]:
    """Return types for `rewrite` that leave the types of merged tensors unchanged if possible.

    A type that cannot be written is replaced (see `writable_type`). Also returns one line for each
    replaced type.
    """
    types: dict[str, int] = {}
    moved: dict[tuple[int, int], int] = {}
    for name in deltas:
        old = f.tensors[name].type_id
        types[name] = new = writable_type(old, f.tensors[name].shape[-1])
        if new != old:
            moved[old, new] = moved.get((old, new), 0) + 1
    lines = [
        f"{TENSOR_TYPES[old].name} cannot be written: {n} tensors become {TENSOR_TYPES[new].name}"
        for (old, new), n in moved.items()
    ]
    return types, lines


def requantised(f: GGUFFile, types: Mapping[str, int]) -> str | None:
    """Return the name of a tensor that would be quantised again, or None if there is none."""
    plain = {IDS[name] for name in ("F32", "F16", "BF16")}
    for name, new in types.items():
        old = f.tensors[name].type_id
        if old != new and old not in plain and may_change(name, f.tensors[name].shape):
            return name
    return None
