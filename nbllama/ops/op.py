"""What one op of this package is, so that tests and benchmarks can run over all of them alike.

Each file of `nbllama.ops` is one page: formula and derivative, a reference in plain numpy, Numba
kernels, and thin wrappers that check their arguments. Its `OPS` tuple names the ops of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Inputs = dict[str, Any]  # keyword arguments by name
Gradients = dict[str, np.ndarray]  # by the name of the input

SERIAL = 65536
"""Below this many numbers one thread is faster than starting two (about 50 us)."""


@dataclass(frozen=True)
class Op:
    """One differentiable function, twice: as numpy reference and through the kernels.

    `sample(rng, size, dtype)` makes the keyword arguments of the other four; `size` is one of
    `sizes`, of which "tiny" has few enough numbers to differentiate by each of them. Float arrays
    have the given dtype, integer arrays int32 (they get no gradient), bytes uint8, and everything
    that is no array is a parameter. None of the four changes its arguments.

    - `forward_ref(**inputs)` is the output in plain numpy, in the dtype of the inputs;
    - `grad_ref(dy, **inputs)` is the gradient of `sum(dy * output)` by each differentiable input;
    - `forward`, `grad`: the same through the kernels, float32 only. They refuse what the wrappers
      refuse: an array of another shape or dtype, or one that is not contiguous.

    `tolerance` bounds the largest difference between kernel and reference, relative to the largest
    number of the reference; `why` gives its reason. `ggml` names what computes the same in ggml.
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
    """Raise ValueError unless `array` is a C-contiguous array of exactly this shape and dtype.

    Kernels have no bounds checks: every wrapper calls this for every array before its kernel.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{op}: {name} is {type(array).__name__}, not an array")
    if array.dtype != dtype:
        raise ValueError(f"{op}: {name} is {array.dtype}, wanted {np.dtype(dtype)}")
    if array.shape != shape:
        raise ValueError(f"{op}: {name} has shape {array.shape}, wanted {shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{op}: {name} is not contiguous")


def check_output(
    op: str, name: str, array: np.ndarray, shape: tuple[int, ...], *, dtype: Any = np.float32
) -> None:
    """`check_array` for an array that a kernel writes: it must be writable too."""
    check_array(op, name, array, shape, dtype=dtype)
    if not array.flags.writeable:
        raise ValueError(f"{op}: {name} is read-only")


def copy_as_laid_out(array: np.ndarray) -> np.ndarray:
    """Return a writable copy with the strides of `array` (numpy's copies are contiguous).

    For ops that work in place: their `Op.forward` must refuse what the wrapper refuses.
    """
    span = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    memory = np.empty(span // array.itemsize + 1, array.dtype)
    copy = np.lib.stride_tricks.as_strided(memory, array.shape, array.strides)
    copy[...] = array
    return copy


def readonly(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, as kernels take inputs: writable ones would compile once more."""
    view = array.view()
    view.flags.writeable = False
    return view
