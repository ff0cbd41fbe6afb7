"""Choose Numba's threading layer at the first launch, without changing Numba's settings.

OpenMP starts a kernel on all threads in about 1 us, whereas Numba's own work queue takes 50 to 100
us. If the user has set a layer (`NUMBA_THREADING_LAYER`, `numba.config.THREADING_LAYER`), or a
layer is already running, that layer is used.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
from numba.core.compiler_lock import global_compiler_lock

from nbllama.kernels.turns import on_fork


def _load_openmp() -> bool:
    """Load the OpenMP layer if its library is installed.

    In GNU's library, an idle thread polls for work about 300,000 times before it sleeps, which
    slows down other processes on the same cores. This function lowers the limit to 10,000 polls
    (tens of microseconds), which is just as fast for this package (docs/speed.md).
    """
    looks = {"GOMP_SPINCOUNT": "10000"}
    if looks.keys() & os.environ.keys() or "OMP_WAIT_POLICY" in os.environ:
        looks = {}
    os.environ.update(looks)  # the library reads this variable only when it is loaded
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    finally:
        for name in looks:
            del os.environ[name]
    return True


def _by_default() -> bool:
    return str(numba.config.THREADING_LAYER).lower() == "default"


_OURS = ("omp" if _load_openmp() else "workqueue") if _by_default() else ""
_launching = threading.Lock()
_launched = False


def launch() -> None:
    """Make Numba launch its threads.

    They use this module's layer, unless a layer is already running.
    """
    global _launched
    if _launched:
        return
    with _launching:
        before = numba.config.THREADING_LAYER
        if _OURS and _by_default():
            numba.config.THREADING_LAYER = _OURS
        try:
            numba.get_num_threads()
        finally:
            numba.config.THREADING_LAYER = before
        _launched = True


def get_num_threads() -> int:
    """Return how many threads run the parallel kernels that this thread calls."""
    launch()
    return int(numba.get_num_threads())


def _threads_are_lost() -> bool:
    """Return whether a forked child lacks threads that kernels or Numba's compiler depend on."""
    compiling = global_compiler_lock._lock
    if _launching.locked() or not compiling.acquire(blocking=False):
        return True
    compiling.release()
    try:
        return str(numba.threading_layer()) == "omp"  # other layers restart their threads
    except ValueError:
        return False  # no layer has been launched


on_fork(_threads_are_lost)


class _Bound(threading.local):
    """The processors that this thread could use before it was bound, or None if it is not bound."""

    processors: frozenset[int] | None = None


BOUND = _Bound()


@contextmanager
def at_large() -> Iterator[None]:
    """Unbind this thread from its core while the `with` block runs.

    When Numba compiles, it may count the processors again. If this thread were bound at that time,
    Numba would find only one processor.
    """
    if BOUND.processors is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, BOUND.processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
