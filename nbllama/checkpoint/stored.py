"""Declare how the fields of a dataclass are stored in a GGUF file, and read and write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, field, fields
from typing import Any, NamedTuple

from nbllama.gguf_io import GGUFFile, ValueType

Entry = tuple[str, Any, ValueType]  # key, value, type

_BY_TYPE = {
    bool: ValueType.BOOL,
    int: ValueType.INT64,
    float: ValueType.FLOAT64,
    str: ValueType.STRING,
}
# Largest accepted numbers. A resumed run adds to these numbers, and the sums must not overflow.
MOST, MAX_ITERATION, MAX_RANK, MAX_PAST = 1 << 53, (1 << 31) - 1, 1 << 16, 1 << 20
ALPHAS = (1e-30, 1e30)  # bounds for alpha, because the scale is a float32


class Key(NamedTuple):
    """How a single value is stored."""

    name: str
    kind: ValueType
    optional: bool  # omitted from the file if it equals its default
    at_most: int  # upper bound for an integer


class Group(NamedTuple):
    """How a dict is stored. The key of each item is `prefix` followed by the item's name."""

    prefix: str
    kind: ValueType | None  # STRING or FLOAT64; None if the type depends on the item


def stored_key(
    name: str, kind: ValueType, default: Any = MISSING, *, optional: bool = False,
    at_most: int = MOST,
) -> Any:  # fmt: skip
    """Declare a field that is stored under `name`.

    An `optional` field is stored only if it differs from its default. A field that is missing from
    older checkpoints must be optional.
    """
    return field(default=default, metadata={"stored": Key(name, kind, optional, at_most)})


def stored_group(prefix: str, kind: ValueType | None = None) -> Any:
    """Declare a dict field, empty by default, whose items are stored under `prefix` + name."""
    return field(default_factory=dict, metadata={"stored": Group(prefix, kind)})


def entries(x: Any) -> Iterator[Entry]:
    """Yield keys, values and types of all stored fields of a dataclass instance."""
    for f in fields(x):
        row, value = f.metadata.get("stored"), getattr(x, f.name)
        if isinstance(row, Key) and not (row.optional and value == f.default):
            yield row.name, value, row.kind
        elif isinstance(row, Group):
            for name, item in value.items():
                yield row.prefix + name, item, row.kind or _BY_TYPE[type(item)]


def values(f: GGUFFile, kind: type) -> dict[str, Any]:
    """Read all stored fields of a dataclass from a file, as a dict keyed by field name.

    Raises `GGUFError` if a field is missing or has the wrong type.
    """
    return {x.name: _value(f, x) for x in fields(kind) if "stored" in x.metadata}


def _value(f: GGUFFile, x: Field[Any]) -> Any:
    row = x.metadata["stored"]
    if isinstance(row, Key):
        if row.optional and row.name not in f.metadata:
            return x.default
        return _single(f, row.name, row.kind, row.at_most)
    found = items(f, row.prefix)
    if row.kind is None:
        return found
    return {name: _single(f, row.prefix + name, row.kind) for name in found}


def _single(f: GGUFFile, key: str, kind: ValueType, at_most: int = MOST) -> Any:
    if kind == ValueType.STRING:
        return f.get(key, "str")
    floats = (ValueType.FLOAT32, ValueType.FLOAT64)
    return f.finite(key) if kind in floats else f.count(key, at_most)


def items(f: GGUFFile, prefix: str) -> dict[str, Any]:
    """Return the scalar values whose keys start with a prefix, keyed by the rest of each key."""
    return {
        name.removeprefix(prefix): value
        for name, value in f.metadata.items()
        if name.startswith(prefix) and isinstance(value, bool | int | float | str)
    }
