"""Tests of every op in `nbllama.ops.OPS`; new ops are included automatically."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import pytest

from nbllama.ops import OPS
from nbllama.ops.op import Op
from tests.differences import compare
from tests.ops.gradcheck import check_directions, check_every_entry

EACH = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
CASES = [(op, size) for op in OPS for size in op.sizes]
EACH_SIZE = pytest.mark.parametrize("op, size", CASES, ids=[f"{o.name}-{s}" for o, s in CASES])


def sample(op: Op, size: str, dtype: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """(dy, inputs), the same numbers for every dtype except for rounding."""
    rng = np.random.default_rng(7)
    inputs = op.sample(rng, size, dtype)
    return rng.standard_normal(op.forward_ref(**inputs).shape).astype(dtype), inputs


def wide(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same numbers with float64 arrays in place of float32 ones."""
    return {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for k, v in inputs.items()
    }


def arrays(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}


@EACH
def test_description(op: Op) -> None:
    assert op.why and op.ggml and 0 < op.tolerance <= 1e-4
    assert op.sizes[0] == "tiny" and {"one", "odd"} <= set(op.sizes)


@EACH_SIZE
def test_kernel_is_the_reference(op: Op, size: str) -> None:
    dy, inputs = sample(op, size, np.float32)
    y = op.forward(**inputs)
    assert y.dtype == np.float32
    compare(op.name, y, op.forward_ref(**wide(inputs)), op.tolerance)
    got, wanted = op.grad(dy, **inputs), op.grad_ref(dy.astype(np.float64), **wide(inputs))
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert got[name].dtype == np.float32
        compare(
            f"{op.name}, gradient with respect to {name}", got[name], wanted[name], op.tolerance
        )


@EACH_SIZE
def test_reference_gradient_is_the_slope(op: Op, size: str) -> None:
    dy, inputs = sample(op, size, np.float64)
    gradients = op.grad_ref(dy, **inputs)
    assert gradients.keys() <= inputs.keys()

    def f(changed: dict[str, Any]) -> float:
        return float((dy * op.forward_ref(**changed)).sum())

    if size == "tiny":
        check_every_entry(f, inputs, gradients)
    check_directions(f, inputs, gradients, np.random.default_rng(8))


@EACH
def test_a_wrong_gradient_is_found(op: Op) -> None:
    """The comparison with slopes can fail: with one number wrong by 1e-4 of the largest."""
    dy, inputs = sample(op, "tiny", np.float64)
    for name, gradient in op.grad_ref(dy, **inputs).items():
        wrong = gradient.copy()
        wrong.flat[-1] += 1e-4 * np.abs(gradient).max()
        with pytest.raises(AssertionError, match="off"):
            check_every_entry(
                lambda changed: float((dy * op.forward_ref(**changed)).sum()),
                inputs,
                {name: wrong},
            )


@EACH_SIZE
def test_bits_do_not_depend_on_threads(op: Op, size: str) -> None:
    dy, inputs = sample(op, size, np.float32)
    results = []
    before = numba.get_num_threads()
    try:
        for threads in (1, 2, 2):
            numba.set_num_threads(threads)
            results.append({"": op.forward(**inputs), **op.grad(dy, **inputs)})
    finally:
        numba.set_num_threads(before)
    for other in results[1:]:
        for name, array in results[0].items():
            assert array.tobytes() == other[name].tobytes(), name


@EACH
def test_read_only_inputs_are_taken_and_left_alone(op: Op) -> None:
    dy, inputs = sample(op, "odd", np.float32)
    expected = {"": op.forward(**inputs), **op.grad(dy, **inputs)}
    before = {k: v.copy() for k, v in arrays(inputs).items()}
    for array in (dy, *arrays(inputs).values()):
        array.flags.writeable = False
    got = {"": op.forward(**inputs), **op.grad(dy, **inputs)}
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    for name, array in before.items():
        np.testing.assert_array_equal(inputs[name], array)


def strided(a: np.ndarray) -> np.ndarray:
    """The same numbers, every second one in memory."""
    double = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    double[..., ::2] = a
    return double[..., ::2]


def other_dtype(a: np.ndarray) -> np.ndarray:
    return a.astype({"f": np.float64, "i": np.int64, "u": np.int8}[a.dtype.kind])


@EACH
@pytest.mark.parametrize("spoil", [strided, other_dtype, lambda a: a[None]], ids="sdn")
def test_bad_arrays_are_refused(op: Op, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    """Not contiguous (s), of another dtype (d), with one more dimension (n): before any kernel."""
    dy, inputs = sample(op, "tiny", np.float32)
    for name, array in arrays(inputs).items():
        with pytest.raises(ValueError):
            op.forward(**{**inputs, name: spoil(array)})
    with pytest.raises(ValueError):
        op.grad(spoil(dy), **inputs)


def resized(a: np.ndarray) -> Iterator[np.ndarray]:
    """`a` with one less, and with one more, along each of its axes."""
    for axis in range(a.ndim):
        for index in (range(a.shape[axis] - 1), [*range(a.shape[axis]), 0]):
            yield np.ascontiguousarray(a.take(index, axis))


@EACH
def test_other_lengths_are_refused_or_right(op: Op) -> None:
    """An array that alone changes its length gives a ValueError, or what the reference gives."""
    dy, inputs = sample(op, "tiny", np.float32)
    refused = 0
    for name, array in arrays(inputs).items():
        for other in resized(array):
            changed = {**inputs, name: other}
            try:
                y = op.forward(**changed)
            except ValueError:
                refused += 1
                continue
            compare(f"{op.name}, {name}", y, op.forward_ref(**wide(changed)), op.tolerance)
    assert refused or len(arrays(inputs)) == 1  # elementwise ops take any shape
    for other in resized(dy):
        try:
            got = op.grad(other, **inputs)
        except ValueError:
            continue
        for name, wanted in op.grad_ref(other.astype(np.float64), **wide(inputs)).items():
            compare(f"{op.name}, gradient with respect to {name}", got[name], wanted, op.tolerance)


@EACH
def test_indices_out_of_range_are_refused(op: Op) -> None:
    dy, inputs = sample(op, "tiny", np.float32)
    for name, array in arrays(inputs).items():
        if array.dtype != np.int32:
            continue
        for index in (-1, 2**31 - 1):
            bad = array.copy()
            bad[-1] = index
            with pytest.raises(ValueError):
                op.forward(**{**inputs, name: bad})
            with pytest.raises(ValueError):
                op.grad(dy, **{**inputs, name: bad})


@EACH
def test_nan_is_not_lost(op: Op) -> None:
    dy, inputs = sample(op, "odd", np.float32)
    for name in op.grad_ref(dy, **inputs):
        bad = {**inputs, name: inputs[name].copy()}
        bad[name].flat[0] = np.nan
        if np.isnan(op.forward_ref(**bad)).any():
            assert np.isnan(op.forward(**bad)).any(), name
        wanted, got = op.grad_ref(dy, **bad), op.grad(dy, **bad)
        assert [k for k in wanted if np.isnan(wanted[k]).any()] == [
            k for k in got if np.isnan(got[k]).any()
        ], name
    dy[0] = np.nan
    for name, gradient in op.grad(dy, **inputs).items():
        assert np.isnan(gradient).any(), name
