"""An entry of the registry: one computation of kernels, in three implementations.

A case makes inputs of a size and runs them through our kernels, through a reference in plain numpy
and, where it has such an op, through llama.cpp. The tests compare the three on small sizes,
`scripts/tools/kernel_tables` compares and times them on one that is like a step of the demo model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.differences import relative
from tests.oracle import Graph

SIZES = ("one", "odd", "large")
"""One token; odd numbers of everything; as in a step of the demo model."""

# Both sides sum up to a thousand float32 products in their own order: a few units of 2^-24 times
# the square root of the number of terms.
SUM = 5e-6
# llama.cpp rounds activations to 8 bits in blocks of 32 or 256 before a product with quantised
# weights: one part in 2 * 127 of the largest activation of a block, averaged over the row.
ROUNDED = 0.02

Arrays = dict[str, np.ndarray]
Inputs = dict[str, Any]


class Theirs:
    """A repeatable call of llama.cpp: `run`, then `read` the results."""

    def __init__(self, run: Callable[[], Any], read: Callable[[], Arrays]) -> None:
        self.run, self.read = run, read


@dataclass(frozen=True)
class Run:
    """A case in one size.

    - `ours()`: by the package's own functions, into memory that the next call overwrites;
    - `reference(**inputs)`: the same in plain numpy, in the dtype of the inputs;
    - `theirs(graph)`: llama.cpp's tensors by name, added to a graph and not yet computed, or a
      `Theirs` for what is no graph; None where llama.cpp has nothing of the kind;
    - `work`: the work of one call, in the case's unit: operations, bytes or weights;
    - `seen`, `their_seen`: select the compared part of the results of `ours` and `theirs`, if that
      has a different layout.
    """

    inputs: Inputs
    ours: Callable[[], Arrays]
    reference: Callable[..., Arrays]
    theirs: Callable[[Graph], Mapping[str, Any] | Theirs] | None
    work: float
    seen: Callable[[Arrays], Arrays] = lambda found: found
    their_seen: Callable[[Arrays], Arrays] = lambda found: found


@dataclass(frozen=True)
class Case:
    """`functions`: what of the package it covers; the first one's module is its page.

    `bound`, `llama_bound`: the largest distance to the reference (in float64) and to llama.cpp,
    by default relative to the largest number. `llama`: its ops, or "none: " and why. `unit`: G
    and what `Run.work` counts. `shape`: of the large size. `timed_reference`: off where the
    reference is not the same work in numpy.
    """

    name: str
    group: str
    functions: tuple[Callable[..., Any], ...]
    make: Callable[[str], Run]
    bound: float
    llama: str
    llama_bound: float
    unit: str
    shape: str
    timed_reference: bool
    distance: Callable[[np.ndarray, np.ndarray], float]

    @property
    def page(self) -> str:
        return self.functions[0].__module__


CASES: list[Case] = []


def case(
    name: str,
    group: str,
    *functions: Callable[..., Any],
    bound: float,
    llama: str,
    shape: str,
    llama_bound: float = SUM,
    unit: str = "GB/s",
    timed_reference: bool = True,
    distance: Callable[[np.ndarray, np.ndarray], float] = relative,
) -> Callable[[Callable[[str], Run]], Callable[[str], Run]]:
    """A decorator: the function returns a case's `Run` for a size; the case is added to `CASES`."""

    def join(make: Callable[[str], Run]) -> Callable[[str], Run]:
        CASES.append(
            Case(
                name,
                group,
                functions,
                make,
                bound,
                llama,
                llama_bound,
                unit,
                shape,
                timed_reference,
                distance,
            )
        )
        return make

    return join


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def wide(inputs: Inputs) -> Inputs:
    """The same numbers, float32 arrays as float64."""
    return {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for k, v in inputs.items()
    }


@contextmanager
def llama(run: Run, n_threads: int = 1) -> Iterator[Theirs]:
    """llama.cpp's side of a run, ready to be called and read."""
    assert run.theirs is not None
    with Graph(n_threads, 1 << 29) as g:
        found = run.theirs(g)
        if isinstance(found, Theirs):
            yield found
        else:
            tensors = dict(found)
            compute = g.repeated(*tensors.values())
            yield Theirs(compute, lambda: {name: g.read(t) for name, t in tensors.items()})


def largest(case: Case, got: Arrays, wanted: Arrays) -> float:
    """The largest distance of any array; llama.cpp's come without leading dimensions of 1."""
    assert got.keys() == wanted.keys(), (case.name, got.keys(), wanted.keys())
    found = 0.0
    for name, array in wanted.items():
        assert array.size == got[name].size and array.size > 0, (case.name, name)
        found = max(found, case.distance(got[name], array.reshape(got[name].shape)))
    return found


def differences(case: Case, size: str) -> tuple[float, float | None]:
    """Ours to the reference, and to llama.cpp (None: it has no such op), in one size."""
    run = case.make(size)
    got = {name: array.copy() for name, array in run.seen(run.ours()).items()}
    own = largest(case, got, run.reference(**wide(run.inputs)))
    if run.theirs is None:
        return own, None
    with llama(run, max(1, min(2, os.cpu_count() or 1))) as theirs:
        theirs.run()
        return own, largest(case, got, run.their_seen(theirs.read()))
