"""Functions that read numbers from the keys of a GGUF file; errors name the invalid key."""

from __future__ import annotations

import math

import numpy as np

from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT


def size(f: GGUFFile, key: str, at_most: int = MAX_COUNT) -> int:
    """Read a count that must be at least 1."""
    return int(f.count(key, at_most, low=1))


def per_layer(f: GGUFFile, key: str, n_layer: int, default: int | None = None) -> int:
    """Read a count, which must be the same in all layers.

    The file can contain one number, or one number per layer.
    """
    if not isinstance(f.metadata.get(key), np.ndarray):
        return size(f, key) if default is None or key in f.metadata else default
    values = f.get(key, "ints")
    if len(values) != n_layer:
        raise f.error(f"key '{key}'", f"{len(values)} values for {n_layer} layers")
    first = int(values[0])
    if not (values == values[0]).all():
        raise f.error(f"key '{key}'", "differs between layers; such models are not supported")
    if not 1 <= first <= MAX_COUNT:
        raise f.error(f"key '{key}'", f"{first}, but must be from 1 to {MAX_COUNT}")
    return first


def per_block(f: GGUFFile, key: str, n_layer: int, default: int | None = None) -> list[int]:
    """Read a count for each layer; the file can contain one number, or one number per layer."""
    if not isinstance(f.metadata.get(key), np.ndarray):
        return [size(f, key) if default is None or key in f.metadata else default] * n_layer
    values = f.get(key, "ints")
    if len(values) != n_layer:
        raise f.error(f"key '{key}'", f"{len(values)} values for {n_layer} layers")
    wrong = [int(v) for v in values if not 1 <= v <= MAX_COUNT]
    if wrong:
        raise f.error(f"key '{key}'", f"{wrong[0]}, but must be from 1 to {MAX_COUNT}")
    return [int(v) for v in values]


def positive(f: GGUFFile, key: str, default: float | None = None) -> float:
    """Read a finite number above zero and round it to float32; `default` is not checked."""
    if default is not None and key not in f.metadata:
        return default
    value = float(np.float32(f.get(key, "float")))
    if not (math.isfinite(value) and value > 0):
        raise f.error(f"key '{key}'", f"{value}, but must be positive and finite")
    return value


def any_number(f: GGUFFile, key: str, default: float = 0.0) -> float:
    """Read a finite number and round it to float32."""
    value = float(np.float32(f.get(key, "float", default)))
    if not math.isfinite(value):
        raise f.error(f"key '{key}'", f"{value}, but must be finite")
    return value


def numbers(f: GGUFFile, key: str, n_layer: int) -> list[float]:
    """Read a finite number for each layer; the file can contain one number, or one per layer."""
    if not isinstance(f.metadata.get(key), np.ndarray):
        f.get(key, "float")  # raises an error if the key is missing
        return [any_number(f, key)] * n_layer
    values = f.get(key, "floats")
    if len(values) != n_layer:
        raise f.error(f"key '{key}'", f"{len(values)} values for {n_layer} layers")
    if not np.isfinite(values).all():
        raise f.error(f"key '{key}'", "must be finite")
    return [float(v) for v in values.astype(np.float32)]


def window_period(f: GGUFFile, key: str, n_layer: int, default: int) -> int:
    """Read the period of the window pattern; the last block of each period has no window.

    The file contains the period as a number, or one flag per block.
    """
    if not isinstance(f.metadata.get(key), np.ndarray):
        period = int(f.count(key, MAX_COUNT, default=default))
        if period < 1:
            raise f.error(f"key '{key}'", f"{period}, but must be at least 1")
        return period
    flags = f.get(key, "flags")
    if len(flags) != n_layer:
        raise f.error(f"key '{key}'", f"{len(flags)} values for {n_layer} layers")
    for period in range(1, n_layer + 2):
        if all(bool(flag) == (i % period < period - 1) for i, flag in enumerate(flags)):
            return period
    raise f.error(f"key '{key}'", "blocks with and without a window do not alternate regularly")
