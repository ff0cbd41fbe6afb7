"""Write a GGUF file (version 3, little-endian) atomically.

This module does not use `gguf.GGUFWriter`, which writes directly to the final file, always adds an
architecture key, silently drops empty strings and arrays, and reports a short write without an
error number. The format is simple enough to write directly from the arrays, without a second copy
in memory. Tests read the written files with the `gguf` package and with llama.cpp.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nbllama.errors import shown
from nbllama.gguf_io import limits
from nbllama.gguf_io.strings import StringArray
from nbllama.gguf_io.types import NUMPY_TENSOR_TYPES, SCALARS, TENSOR_TYPES, ValueType
from nbllama.system.files import atomic_write

Metadata = Iterable[tuple[str, object, int]]
_ALIGNMENT_KEY = "general.alignment"
_PYTHON_TYPES: dict[type, ValueType] = {
    bool: ValueType.BOOL,
    int: ValueType.INT64,
    float: ValueType.FLOAT32,
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor of any GGUF type, with its bytes.

    `shape` is in numpy order. `raw` is a uint8 array, bytes or memoryview whose size matches the
    shape and type exactly, or a function that returns the bytes in pieces. The function is called
    when the tensor is written, so that a model larger than memory can be written. If it raises an
    error, writing stops and no file is changed.
    """

    shape: tuple[int, ...]
    type_id: int
    raw: Any


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Metadata,
    tensors: Iterable[tuple[str, np.ndarray | RawTensor]],
) -> None:
    """Write keys and tensors to `path` in the given order; an existing file is replaced at the end.

    `metadata` contains (key, value, value type), with a type from `ValueType` or
    `gguf.GGUFValueType`. An array is a numpy array, a `StringArray`, or a sequence of str, bool,
    int (written as INT64) or float (written as FLOAT32). An empty sequence is written as an empty
    array of strings. Numpy tensors are written as F32, F16, F64 or I8..I64, depending on their
    dtype.

    Raises `OutputError` if the path cannot be written. Raises `ValueError`, before the first byte
    is written, for names, values, shapes and sizes that the format or `limits` do not allow. If the
    pieces of a tensor have the wrong total size, `ValueError` is raised during writing, and the old
    file is kept.
    """
    tensors = list(tensors)
    header, bodies, alignment = _encode(list(metadata), tensors)
    with atomic_write(path) as file:
        file.write(header)
        _pad(file, len(header), alignment)
        for (name, _), (size, body) in zip(tensors, bodies, strict=True):
            written = 0
            for piece in body() if callable(body) else (body,):
                view = memoryview(piece).cast("B")
                written += len(view)
                if written > size:
                    break
                file.write(view)
            if written != size:
                raise ValueError(
                    f"tensor '{shown(name)}': its pieces do not add up to {size} bytes"
                )
            _pad(file, size, alignment)


def _pad(file: BinaryIO, size: int, alignment: int) -> None:
    file.write(bytes(-size % alignment))


def _encode(
    metadata: list[tuple[str, object, int]], tensors: list[tuple[str, np.ndarray | RawTensor]]
) -> tuple[bytes, list[tuple[int, Any]], int]:
    """Return the unpadded header, each tensor's size and bytes (or function), and the alignment."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    alignment = limits.DEFAULT_ALIGNMENT
    seen: set[str] = set()
    for key, value, type_id in metadata:
        _name(out, key, "key", limits.MAX_KEY_BYTES, seen)
        out += struct.pack("<I", type_id)
        try:
            _value(out, value, ValueType(type_id))
        except (struct.error, TypeError, OverflowError, ValueError) as e:
            raise ValueError(f"key '{shown(key)}': {e}") from e
        if key == _ALIGNMENT_KEY:
            alignment = _alignment(value, type_id)
    if len(metadata) > limits.MAX_KV or len(tensors) > limits.MAX_TENSORS:
        raise ValueError(
            f"{len(metadata)} keys and {len(tensors)} tensors, but the limits are {limits.MAX_KV} "
            f"and {limits.MAX_TENSORS}"
        )
    if len(out) > limits.MAX_METADATA_BYTES:
        raise ValueError(
            f"{len(out)} bytes of metadata, but the limit is {limits.MAX_METADATA_BYTES}"
        )
    seen.clear()
    bodies, offset = [], 0
    for name, tensor in tensors:
        _name(out, name, "tensor", limits.MAX_NAME_BYTES, seen)
        shape, type_id, size, body = _tensor(name, tensor)
        out += struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        out += struct.pack("<IQ", type_id, offset)
        bodies.append((size, body))
        offset += size + -size % alignment
    return bytes(out), bodies, alignment


def _name(out: bytearray, name: str, what: str, limit: int, seen: set[str]) -> None:
    raw = name.encode()
    if not raw or len(raw) > limit or not name.isprintable():
        raise ValueError(
            f"{what} '{shown(name)}': must have 1 to {limit} bytes and no control characters"
        )
    if name in seen:
        raise ValueError(f"{what} '{shown(name)}' appears twice")
    seen.add(name)
    out += struct.pack("<Q", len(raw)) + raw


def _alignment(value: object, type_id: int) -> int:
    if (
        type_id != ValueType.UINT32
        or not isinstance(value, int)
        or value & (value - 1)
        or not limits.MIN_ALIGNMENT <= value <= limits.MAX_ALIGNMENT
    ):
        raise ValueError(f"{_ALIGNMENT_KEY} is {value!r}; it must be a power of two of type UINT32")
    return value


def _value(out: bytearray, value: object, kind: ValueType) -> None:
    """Append a metadata value of the given type."""
    if kind == ValueType.ARRAY:
        _array(out, value)
    elif kind == ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a str")
        raw = value.encode()
        if len(raw) > limits.MAX_STRING_BYTES:
            raise ValueError(
                f"a string has {len(raw)} bytes, but the limit is {limits.MAX_STRING_BYTES}"
            )
        out += struct.pack("<Q", len(raw)) + raw
    elif kind == ValueType.BOOL:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{value!r} is not a bool")
        out += b"\1" if value else b"\0"
    else:
        if isinstance(value, bool | np.bool_):
            raise TypeError(f"{value!r} is a bool, not a number")
        # struct refuses values that do not fit; numpy would wrap around
        out += struct.pack("<" + _STRUCT[kind], value)


_STRUCT = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


def _array(out: bytearray, value: object) -> None:
    """Append an array: its element type, length and elements."""
    if isinstance(value, StringArray):
        out += struct.pack("<IQ", ValueType.STRING, len(value)) + value.wire
        return
    if isinstance(value, np.ndarray):
        element = next((t for t, d in SCALARS.items() if d == value.dtype), None)
        if element is None or value.ndim != 1:
            raise TypeError(
                f"a numpy array of {value.dtype} with {value.ndim} dimensions cannot be stored"
            )
        dtype = SCALARS[element]
        out += struct.pack("<IQ", element, len(value)) + value.astype(dtype).tobytes()
        return
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{type(value).__name__} is not an array")
    if all(isinstance(v, str | bytes) for v in value):
        _array(out, StringArray.of(value))
        return
    kinds = {type(v) for v in value}
    if len(kinds) != 1 or (kind := _PYTHON_TYPES.get(kinds.pop())) is None:
        raise TypeError("elements must all be of one type: str, bool, int or float")
    _array(out, np.array(value, dtype=SCALARS[kind]))


def _tensor(name: str, tensor: np.ndarray | RawTensor) -> tuple[tuple[int, ...], int, int, Any]:
    """Return a tensor's shape (numpy order), type, size and bytes (as a view or a function)."""
    what = f"tensor '{shown(name)}'"
    body: Any
    if isinstance(tensor, RawTensor):
        shape, type_id = tuple(int(n) for n in tensor.shape), tensor.type_id
        body = tensor.raw if callable(tensor.raw) else memoryview(tensor.raw).cast("B")
    else:
        numpy_type = NUMPY_TENSOR_TYPES.get(tensor.dtype)
        if numpy_type is None:
            raise ValueError(f"{what}: dtype {tensor.dtype} has no GGUF type")
        shape, type_id = tensor.shape, numpy_type
        body = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    kind = TENSOR_TYPES.get(type_id)
    if kind is None:
        raise ValueError(f"{what}: type {type_id} is not supported")
    if not 1 <= len(shape) <= limits.MAX_DIMS or not all(1 <= n <= limits.MAX_DIM for n in shape):
        raise ValueError(
            f"{what}: shape {shape} must have 1 to {limits.MAX_DIMS} positive dimensions"
        )
    if shape[-1] % kind.block_size:
        raise ValueError(
            f"{what}: row length {shape[-1]} is not a multiple of the {kind.name} block size "
            f"{kind.block_size}"
        )
    expected = kind.nbytes(math.prod(shape))
    if not callable(body) and len(body) != expected:
        raise ValueError(f"{what}: {len(body)} bytes, but its shape and type require {expected}")
    return shape, type_id, expected, body
