"""Read and write adapters as safetensors files with F32, F16 and BF16 arrays.

A file consists of a u64 with the size of the header, the header in JSON, and the values of all
tensors without gaps: https://github.com/huggingface/safetensors#format. The `safetensors` package
would add a compiled dependency and save only forty lines.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbllama.adapter.source import BYTES, Path, Source
from nbllama.errors import shown
from nbllama.system.downloads import LOOKED_AT, wrong_download
from nbllama.system.files import atomic_write

MAX_HEADER = 16 << 20
_ALIGNMENT = 8


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write float32 arrays atomically, in the given order. Raises `OutputError`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, x in tensors.items():
        end = at + 4 * x.size
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            file.write(np.ascontiguousarray(x, "<f4").data)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return all tensors as float32 copies, and the metadata.

    Raises `CheckpointError` for a file that is damaged or contains other types.
    """
    with Source(path) as f:
        start = f.take(8, "header")
        (size,) = struct.unpack("<Q", start)
        if size > MAX_HEADER:
            if problem := wrong_download(start + f.take(min(f.left, LOOKED_AT), "header")):
                raise f.error("file", problem)
            raise f.error("header", f"{size} bytes, but the limit is {MAX_HEADER}")
        header = parse_json(f, f.take(size, "header"), "header")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise f.error("header", "__metadata__ is not a map of strings")
        entries = sorted((_entry(f, name, e) for name, e in header.items()), key=lambda e: e[0])
        tensors = {}
        at = f.at
        for begin, name, dtype, shape in entries:
            where = f"tensor '{shown(name)}'"
            if at + begin != f.at:
                raise f.error(where, "data_offsets overlap or leave a gap")
            tensors[name] = f.floats(dtype, shape, where)
        if f.left:
            raise f.error("file", f"{f.left} bytes after the last tensor")
    return tensors, metadata


def parse_json(f: Source, data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object without repeated keys. Raises `CheckpointError`."""

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) != len(items):
            raise ValueError("a key appears twice")
        return values

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise f.error(where, f"not JSON: {shown(e)}") from e
    if not isinstance(value, dict):
        raise f.error(where, "not a JSON object")
    return value


def _entry(f: Source, name: str, entry: Any) -> tuple[int, str, str, tuple[int, ...]]:
    """Return the start offset, name, dtype and shape of a tensor; check that its size matches."""
    where = f"tensor '{shown(name)}'"
    if not isinstance(entry, dict):
        raise f.error(where, "its header is not an object")
    fields: tuple[Any, ...] = tuple(entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    dtype, shape, place = fields
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise f.error(where, f"the type must be one of {', '.join(BYTES)}, not {shown(dtype)}")
    if not _counts(shape) or not 1 <= len(shape) <= 2 or 0 in shape:
        raise f.error(where, f"the shape must be one or two positive integers, not {shown(shape)}")
    if not _counts(place) or len(place) != 2:
        raise f.error(where, f"data_offsets must be two offsets, not {shown(place)}")
    if place[1] - place[0] != math.prod(shape) * BYTES[dtype] or place[1] > f.left:
        raise f.error(where, f"data_offsets {shown(place)} do not fit {dtype} {shown(shape)}")
    return place[0], name, dtype, tuple(shape)


def _counts(x: Any) -> bool:
    return isinstance(x, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in x)
