"""Numbers of a GGUF file's keys, refused by name where they cannot be."""

from __future__ import annotations

import math

import numpy as np

from nbllama.gguf_io import GGUFFile


def size(f: GGUFFile, key: str, at_most: int = 1 << 31) -> int:
    """Read a count of at least one."""
    value = f.get(key, "uint")
    if not 1 <= value <= at_most:
        raise f.error(f"key '{key}'", f"{value}, allowed 1..{at_most}")
    return int(value)


def per_layer(f: GGUFFile, key: str, n_layer: int, default: int | None = None) -> int:
    """Read a count given once or once a layer; all layers must have the same."""
    if not isinstance(f.metadata.get(key), np.ndarray):
        return size(f, key) if default is None or key in f.metadata else default
    values = f.get(key, "ints")
    if len(values) != n_layer:
        raise f.error(f"key '{key}'", f"{len(values)} values for {n_layer} layers")
    first = int(values[0])
    if not (values == values[0]).all():
        raise f.error(f"key '{key}'", "differs between layers, which is not supported")
    if not 1 <= first <= 1 << 31:
        raise f.error(f"key '{key}'", f"{first}, allowed 1..{1 << 31}")
    return first


def positive(f: GGUFFile, key: str, default: float | None = None) -> float:
    """Read a finite number above zero, rounded to float32; `default` is not checked."""
    if default is not None and key not in f.metadata:
        return default
    value = float(np.float32(f.get(key, "float")))
    if not (math.isfinite(value) and value > 0):
        raise f.error(f"key '{key}'", f"{value}, must be positive and finite")
    return value
