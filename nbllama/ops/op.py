"""The definition of an op, which lets tests and benchmarks treat all ops in the same way.

Each module in `nbllama.ops` contains a formula and its derivative, a reference implementation in
plain numpy, Numba kernels, and thin wrappers that check their arguments. The module's ops are
listed in its `OPS` tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Inputs = dict[str, Any]  # keyword arguments by name
Gradients = dict[str, np.ndarray]  # one gradient per input name

SERIAL = 65536
"""Up to this many elements, one thread is fastest, because waking the others takes about 50 us."""


@dataclass(frozen=True)
class Op:
    """A differentiable function with two implementations: a numpy reference and the kernels.

    `sample(rng, size, dtype)` creates the keyword arguments for the four functions below. `size` is
    one of `sizes`; "tiny" is small enough to compute a finite difference for every number. Float
    arrays have the given dtype, integer arrays are int32 (and have no gradient), bytes are uint8,
    and everything else is a parameter. None of the four functions modifies its arguments.

    - `forward_ref(**inputs)` computes the output in plain numpy, in the dtype of the inputs.
    - `grad_ref(dy, **inputs)` computes the gradient of `sum(dy * output)` with respect to each
      differentiable input.
    - `forward` and `grad` compute the same results with the kernels, in float32 only. Like the
      wrappers, they reject arrays that have the wrong shape or dtype or are not contiguous.

    `tolerance` bounds the largest difference between the kernels and the reference, relative to the
    largest number in the reference; `why` explains the bound. `ggml` names the equivalent ggml
    functions.
    """

    name: str
    sizes: tuple[str, ...]
    sample: Callable[[np.random.Generator, str, Any], Inputs]
    forward_ref: Callable[..., np.ndarray]
    grad_ref: Callable[..., Gradients]
    forward: Callable[..., np.ndarray]
    grad: Callable[..., Gradients]
    tolerance: float
    why: str
    ggml: str


def check_array(
    op: str, name: str, array: np.ndarray, shape: tuple[int, ...], *, dtype: Any = np.float32
) -> None:
    """Raise ValueError unless `array` is a C-contiguous array with exactly this shape and dtype.

    Kernels have no bounds checks, so every wrapper checks each array before it calls its kernel.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{op}: {name} is {type(array).__name__}, not an array")
    if array.dtype != dtype:
        raise ValueError(f"{op}: {name} is {array.dtype}, expected {np.dtype(dtype)}")
    if array.shape != shape:
        raise ValueError(f"{op}: {name} has shape {array.shape}, expected {shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{op}: {name} is not contiguous")


def check_output(
    op: str, name: str, array: np.ndarray, shape: tuple[int, ...], *, dtype: Any = np.float32
) -> None:
    """Raise ValueError unless `array` passes `check_array` and is writable."""
    check_array(op, name, array, shape, dtype=dtype)
    if not array.flags.writeable:
        raise ValueError(f"{op}: {name} is read-only")


def copy_as_laid_out(array: np.ndarray) -> np.ndarray:
    """Return a writable copy with the strides of `array` (numpy's copies are contiguous).

    `Op.forward` runs in-place ops on such a copy, so that it rejects the same arrays as a wrapper.
    """
    span = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    memory = np.empty(span // array.itemsize + 1, array.dtype)
    copy = np.lib.stride_tricks.as_strided(memory, array.shape, array.strides)
    copy[...] = array
    return copy


def readonly(array: np.ndarray) -> np.ndarray:
    """Return a read-only view of `array`.

    Numba compiles separate kernels for read-only and writable arrays, so all inputs are read-only.
    """
    view = array.view()
    view.flags.writeable = False
    return view
