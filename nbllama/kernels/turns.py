"""A lock that makes calls from several Python threads take turns.

Kernels write to the package's scratch memory and draw their tasks from shared counters. In
addition, one of Numba's threading layers aborts the process if two threads start kernels at the
same time. A single lock prevents these conflicts. Every parallel kernel holds the lock while the
kernel runs (`nbllama.kernels.jit`), every function that uses scratch memory holds the lock until
the result has been copied, and a pass through the model holds it from the first kernel to the last
(`nbllama.kernels.own_cores`). A thread that holds the lock can acquire it again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from nbllama.errors import NbllamaError

P = ParamSpec("P")
R = TypeVar("R")

LOCK = threading.RLock()
_of_objects: weakref.WeakSet[Any] = weakref.WeakSet()

_AFTER_FORK = (
    "this process was forked after its parent had run kernels, so it lacks the parent's threads; "
    "use the spawn start method, multiprocessing.get_context('spawn')"
)


class _Fork:
    """The state after a fork; `refused` is True in a child that lacks its parent's threads."""

    refused = False


FORK = _Fork()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that only one thread at a time runs any of the decorated functions."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with LOCK:
            return function(*args, **kwargs)

    return alone


def new_turn() -> Any:
    """Return an RLock for `one_at_a_time`; a forked child releases the lock."""
    lock = threading.RLock()
    _of_objects.add(lock)
    return lock


def one_at_a_time(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method so that only one thread at a time runs an object's decorated methods.

    The decorator also works for functions whose first argument is the object. The object must have
    an attribute `turn`, created with `new_turn`. Methods of other objects are not blocked.
    """

    @wraps(method)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with args[0].turn:  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return alone


def refuse() -> NoReturn:
    """Raise the error that explains why this forked process cannot run kernels."""
    raise NbllamaError(_AFTER_FORK)


def on_fork(threads_are_lost: Callable[[], bool]) -> None:
    """Call `threads_are_lost` in every forked child.

    If the function returns True, the child refuses to run kernels.
    """

    def in_child() -> None:
        FORK.refused = FORK.refused or threads_are_lost()

    _in_child(in_child)


def _free_locks() -> None:
    """Release all locks in a forked child, in which only the forking thread exists."""
    for lock in (LOCK, *_of_objects):
        lock._at_fork_reinit()


def _in_child(function: Callable[[], None]) -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


_in_child(_free_locks)
