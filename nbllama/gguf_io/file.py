"""An open GGUF file: metadata, tensor ranges, and read-only views of the mapped bytes."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from nbllama.errors import GGUFError, shown
from nbllama.gguf_io.strings import StringArray
from nbllama.gguf_io.types import SCALARS, ValueType

_MISSING: Any = object()
_KINDS = {
    "uint": "a count (a non-negative integer)",
    "float": "a floating point number",
    "str": "a string",
    "bool": "a boolean",
    "strings": "an array of strings",
    "floats": "an array of floating point numbers",
    "ints": "an array of integers",
    "flags": "an array of booleans",
}


class TensorInfo(NamedTuple):
    """A tensor in a file.

    `shape` is in numpy order, and `offset` is in bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


class GGUFFile:
    """An open GGUF file, returned by `open_gguf`. `metadata` and `tensors` are in file order.

    Metadata values are int, float, bool, str, numpy arrays (owned copies) or `StringArray`.
    """

    def __init__(
        self,
        path: str,
        info: os.stat_result,
        mapping: mmap.mmap,
        *,
        version: int,
        alignment: int,
        metadata: dict[str, object],
        types: dict[str, ValueType],
        tensors: dict[str, TensorInfo],
    ) -> None:
        self.path = path
        self.paths: tuple[str, ...] = (path,)  # more than one for a split model
        self._absolute = os.path.abspath(path)  # the working directory can change
        self.size = info.st_size
        self.version = version
        self.alignment = alignment
        self.metadata = metadata
        self.tensors = tensors
        self._types = types
        self._state = _state(info)
        self._mapping: mmap.mmap | None = mapping
        self._bytes: np.ndarray | None = np.frombuffer(mapping, np.uint8)

    def data(self, name: str) -> np.ndarray:
        """Return the tensor's bytes as a read-only view of the mapping, uint8 `[nbytes]`.

        Raises `GGUFError` if the tensor does not exist, and `ValueError` after `close`.
        """
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        t = self.tensors.get(name)
        if t is None:
            raise self.error(f"tensor '{shown(name)}'", "is missing")
        return self._bytes[t.offset : t.offset + t.nbytes]

    def get(self, key: str, kind: str, default: Any = _MISSING) -> Any:
        """Return the value of `key`, which must be of kind `kind`, or `default` if it is missing.

        | kind | GGUF types | returns |
        |---|---|---|
        | "uint" | u8..u64, non-negative i8..i64 | int |
        | "float" | f32, f64 | float |
        | "str", "bool" | string, bool | str, bool |
        | "strings" | array of strings | `StringArray` |
        | "floats" | array of f32, f64 | numpy array, as stored |
        | "ints" | array of u8..u64, i8..i64 | numpy array, as stored |
        | "flags" | array of bool or integers | numpy array, as stored |

        Raises `GGUFError`, which names the key, if the value has a different type, or if the key is
        missing and there is no default.
        """
        if key not in self.metadata:
            if default is _MISSING:
                raise self.error(f"key '{shown(key)}'", "is missing")
            return default
        value = self.metadata[key]
        if not _matches(value, kind):
            actual = f"{self._types[key].name}"
            if self._types[key] == ValueType.ARRAY:
                actual = f"array of {self.element_type(key).name}"
            elif isinstance(value, int | float):
                actual += f" {value}"
            raise self.error(f"key '{shown(key)}'", f"must be {_KINDS[kind]}, but is {actual}")
        return value

    def count(self, key: str, at_most: int, *, low: int = 0, default: Any = _MISSING) -> Any:
        """Return the count at `key`, from `low` to `at_most`, or `default` if the key is missing.

        Use this method for every metadata value that determines the length of a loop or the size
        of an allocation.

        Raises the same errors as `get`, and `GGUFError` for a count that is out of range.
        """
        if default is not _MISSING and key not in self.metadata:
            return default
        value = int(self.get(key, "uint"))
        if not low <= value <= at_most:
            raise self.error(f"key '{shown(key)}'", f"{value}, but must be from {low} to {at_most}")
        return value

    def finite(self, key: str) -> float:
        """Return the number at `key`. Raises `GGUFError` unless it is a finite float."""
        value = float(self.get(key, "float"))
        if not math.isfinite(value):
            raise self.error(f"key '{shown(key)}'", f"{value}, but must be finite")
        return value

    def element_type(self, key: str) -> ValueType:
        """Return the element type of an array value."""
        value = self.metadata[key]
        if isinstance(value, StringArray):
            return ValueType.STRING
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{key} is not an array")
        return next(t for t, d in SCALARS.items() if d == value.dtype)  # type: ignore[return-value]

    def entries(self) -> Iterator[tuple[str, object, ValueType]]:
        """Yield every key with its value and type, in the form that `write_gguf` expects."""
        for key, value in self.metadata.items():
            yield key, value, self._types[key]

    def error(self, what: str, problem: str) -> GGUFError:
        """Return a one-line `GGUFError` about this file, with path, field and problem."""
        return GGUFError(f"{shown(self.path, 400)}: {what}: {problem}")

    def recheck(self) -> None:
        """Raise `GGUFError` if the file's size, modification time or inode changed after opening.

        Call this method before and after any long use of the file. A change between two calls is
        detected only by the second call. Truncating the file while its pages are being read
        kills the process (SIGBUS); see `reader`.
        """
        try:
            now = _state(os.stat(self._absolute))
        except OSError as e:
            raise self.error("file", f"has disappeared since it was opened: {e.strerror}") from e
        if now != self._state:
            names = ("size", "modification time", "inode", "device")
            changed = [n for n, a, b in zip(names, self._state, now, strict=True) if a != b]
            raise self.error("file", f"has changed since it was opened ({', '.join(changed)})")

    def close(self) -> None:
        """Close the mapping.

        If views of the mapping are still in use, it is closed when the last view is deleted.
        """
        self._bytes = None
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            with suppress(BufferError):  # views still exist; the mapping closes with the last one
                mapping.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({self.path!r}, {len(self.metadata)} keys, {len(self.tensors)} tensors)"


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev


def _matches(value: object, kind: str) -> bool:
    match kind:
        case "uint":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "float":
            return isinstance(value, float)
        case "str":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "strings":
            return isinstance(value, StringArray)
        case "floats":
            return isinstance(value, np.ndarray) and value.dtype.kind == "f"
        case "ints":
            return isinstance(value, np.ndarray) and value.dtype.kind in "iu"
        case "flags":
            return isinstance(value, np.ndarray) and value.dtype.kind in "biu"
    raise ValueError(f"unknown kind {kind!r}")
